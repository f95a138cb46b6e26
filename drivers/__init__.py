"""Drivers: each the storage of a store's layers, behind the one interface of `thinpool.drivers.base`."""
