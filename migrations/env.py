"""This module is Alembic's entry. rlrec hands over the connection, in a transaction and under the lock that rlrec
holds."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes.get("metadata"),
    version_table="rlrec_version",
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
