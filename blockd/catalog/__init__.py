"""The catalog: what exists, and what is under way. The only room with SQL."""

from blockd.catalog.store import Catalog, open_catalog
from blockd.catalog.transaction import Transaction

__all__ = ["Catalog", "Transaction", "open_catalog"]
