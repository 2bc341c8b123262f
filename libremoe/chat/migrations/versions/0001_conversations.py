"""Conversations, their turns, and the index that searches look in."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A numbered step is never edited, so it spells its tables out and takes nothing from schema.py."""
    seq = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "conversations",
        sa.Column("seq", seq, sa.Identity(), primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("persona", sa.Text, nullable=False),
        sa.Column("language", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("leaf_id", sa.String(32)),
    )
    op.create_index("conversations_by_update", "conversations", ["updated", "seq"])
    op.create_table(
        "turns",
        sa.Column("seq", seq, sa.Identity(), primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("conversation_id", sa.String(32), sa.ForeignKey("conversations.id"), nullable=False),
        sa.Column("parent_id", sa.String(32)),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("parts", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.UniqueConstraint("conversation_id", "id", name="turns_of_a_conversation"),
        sa.ForeignKeyConstraint(["conversation_id", "parent_id"], ["turns.conversation_id", "turns.id"],
                                name="turns_parent"),
    )
    op.create_index("turns_by_parent", "turns", ["conversation_id", "parent_id"])
    if op.get_context().dialect.name == "sqlite":
        # schema.words has folded the text: what the tokenizer sees are words of letters and digits
        op.execute("CREATE VIRTUAL TABLE search USING fts5(words, detail=none, columnsize=0, tokenize='ascii')")
        return
    op.execute("CREATE TABLE search (rowid bigint PRIMARY KEY, words tsvector NOT NULL)")
    op.execute("CREATE INDEX search_words ON search USING gin (words)")
    # ANALYZE would keep samples of these columns in pg_statistic, where no deletion reaches them.
    for table, columns in (("conversations", ("title", "persona", "language")), ("turns", ("parts", "details")),
                           ("search", ("words",))):
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
