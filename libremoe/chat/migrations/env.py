"""Alembic runs this file to bring a database up to the newest step, on the connection that it is given."""

from alembic import context

from libremoe.chat.schema import VERSION_TABLE, metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata,
                  version_table=VERSION_TABLE, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
