"""Every measurement instead of the last one alone, passes task by task, and the operations of the memory.

What version 1 knew of an adapter's fitness becomes its first measurement.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    op.create_table(
        "measurements",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("adapter", sa.String, sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("low", sa.Float, nullable=False),
        sa.Column("high", sa.Float, nullable=False),
        sa.Column("level", sa.Float, nullable=False),
        sa.Column("alpha", sa.Float),
        sa.Column("pass_rate", sa.Float),
        sa.Column("generalization", sa.Float),
        sa.Column("inside_tasks", sa.Integer),
        sa.Column("outside_tasks", sa.Integer),
        sa.Column("draws", sa.Integer, nullable=False),
        sa.Column("protocol", sa.String, nullable=False),
        sa.Column("measured", sa.String, nullable=False),
    )
    op.create_index("by_measured_adapter", "measurements", ["adapter", "number"])
    op.create_table(
        "passes",
        sa.Column("adapter", sa.String, primary_key=True),
        sa.Column("protocol", sa.String, primary_key=True),
        sa.Column("task", sa.String, primary_key=True),
        sa.Column("draws", sa.Integer, nullable=False),
        sa.Column("passes", sa.Integer, nullable=False),
    )
    op.create_table(
        "operations",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False, unique=True),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("result", sa.String, nullable=False),
        sa.Column("kept", sa.Boolean, nullable=False),
        sa.Column("numbers", sa.JSON, nullable=False),
        sa.Column("done", sa.String, nullable=False),
    )
    op.execute(
        "INSERT INTO measurements (adapter, value, low, high, level, draws, protocol, measured) "
        "SELECT id, fitness, fitness_low, fitness_high, 0.95, fitness_draws, '', measured "
        "FROM adapters WHERE fitness IS NOT NULL ORDER BY number"
    )
