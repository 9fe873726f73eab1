"""Alembic runs this: it works on the connection, and in the transaction, of whoever called `database.migrate`."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
