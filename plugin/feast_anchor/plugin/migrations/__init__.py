"""The catalogue's database: its tables, how it is reached, and how it is brought to head.

Importing this package stays light; only `upgrade` imports Alembic.
"""
