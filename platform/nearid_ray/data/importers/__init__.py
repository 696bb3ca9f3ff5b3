"""Importers, one file a source: each lists its identities first and reads them one by one later."""
