"""What alembic runs to reach the database: the connection is given, and its transaction is the caller's."""

from alembic import context

from server.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
