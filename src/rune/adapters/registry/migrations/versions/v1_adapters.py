"""Adapters, what they were made from, their parents and their other names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("base", sa.String, nullable=False),
        sa.Column("base_name", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("domain", sa.String, nullable=False),
        sa.Column("task", sa.String, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("modules", sa.String, nullable=False),
        sa.Column("parameters", sa.Integer, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("delta_w_norm", sa.Float, nullable=False),
        sa.Column("how", sa.String, nullable=False),
        sa.Column("hypernet", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("fitness", sa.Float),
        sa.Column("fitness_low", sa.Float),
        sa.Column("fitness_high", sa.Float),
        sa.Column("fitness_draws", sa.Integer),
        sa.Column("measured", sa.String, nullable=False, server_default=""),
        sqlite_autoincrement=True,
    )
    op.create_index("by_place", "adapters", ["base", "project", "domain", "task", "status", "fitness", "number"])
    op.create_index("by_project", "adapters", ["project", "number", "status"])
    op.create_index("by_domain", "adapters", ["project", "domain", "number", "status"])
    op.create_table(
        "sources",
        sa.Column("adapter", sa.String, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("trajectory", sa.String, primary_key=True),
        sa.Column("task", sa.String, nullable=False),
    )
    op.create_index("by_trajectory", "sources", ["trajectory"])
    op.create_table(
        "parents",
        sa.Column("child", sa.String, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("parent", sa.String, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
    )
    op.create_index("by_parent", "parents", ["parent"])
    op.create_table(
        "aliases",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("adapter", sa.String, sa.ForeignKey("adapters.id"), nullable=False),
    )
    op.create_index("by_adapter", "aliases", ["adapter"])
