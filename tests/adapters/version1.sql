BEGIN TRANSACTION;
CREATE TABLE adapters (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR NOT NULL, 
	base VARCHAR NOT NULL, 
	base_name VARCHAR NOT NULL, 
	project VARCHAR NOT NULL, 
	domain VARCHAR NOT NULL, 
	task VARCHAR NOT NULL, 
	rank INTEGER NOT NULL, 
	modules VARCHAR NOT NULL, 
	parameters INTEGER NOT NULL, 
	size INTEGER NOT NULL, 
	delta_w_norm FLOAT NOT NULL, 
	how VARCHAR NOT NULL, 
	hypernet VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	created VARCHAR NOT NULL, 
	fitness FLOAT, 
	fitness_low FLOAT, 
	fitness_high FLOAT, 
	fitness_draws INTEGER, 
	measured VARCHAR DEFAULT '' NOT NULL, 
	UNIQUE (id)
);
INSERT INTO "adapters" VALUES(1,'1111111111111111111111111111111111111111111111111111111111111111','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','org/base','shop','','',8,'q_proj,v_proj',4096,16800,1.25,'hypernet','','active','2026-01-01T00:00:00Z',0.5,0.4,0.6,100,'2026-01-02T00:00:00Z');
INSERT INTO "adapters" VALUES(2,'2222222222222222222222222222222222222222222222222222222222222222','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','org/base','shop','dates','',8,'q_proj,v_proj',4096,16800,1.25,'hypernet','','active','2026-01-01T00:00:00Z',0.7,0.55,0.8,120,'2026-01-03T00:00:00Z');
INSERT INTO "adapters" VALUES(3,'3333333333333333333333333333333333333333333333333333333333333333','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','org/base','shop','dates','parse',8,'q_proj,v_proj',4096,16800,1.25,'hypernet','','archived','2026-01-01T00:00:00Z',NULL,NULL,NULL,NULL,'');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('1');
CREATE TABLE aliases (
	name VARCHAR NOT NULL, 
	adapter VARCHAR NOT NULL, 
	PRIMARY KEY (name), 
	FOREIGN KEY(adapter) REFERENCES adapters (id)
);
INSERT INTO "aliases" VALUES('best','2222222222222222222222222222222222222222222222222222222222222222');
CREATE TABLE parents (
	child VARCHAR NOT NULL, 
	parent VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	weight FLOAT NOT NULL, 
	PRIMARY KEY (child, parent), 
	FOREIGN KEY(child) REFERENCES adapters (id), 
	FOREIGN KEY(parent) REFERENCES adapters (id)
);
INSERT INTO "parents" VALUES('2222222222222222222222222222222222222222222222222222222222222222','1111111111111111111111111111111111111111111111111111111111111111',0,1.0);
CREATE TABLE sources (
	adapter VARCHAR NOT NULL, 
	trajectory VARCHAR NOT NULL, 
	task VARCHAR NOT NULL, 
	PRIMARY KEY (adapter, trajectory), 
	FOREIGN KEY(adapter) REFERENCES adapters (id)
);
INSERT INTO "sources" VALUES('3333333333333333333333333333333333333333333333333333333333333333','trajectory-7','Shop/7');
CREATE INDEX by_place ON adapters (base, project, domain, task, status, fitness, number);
CREATE INDEX by_project ON adapters (project, number, status);
CREATE INDEX by_domain ON adapters (project, domain, number, status);
CREATE INDEX by_trajectory ON sources (trajectory);
CREATE INDEX by_parent ON parents (parent);
CREATE INDEX by_adapter ON aliases (adapter);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('adapters',3);
COMMIT;
