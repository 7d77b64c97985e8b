"""The golden numbers of a model from upstream's own code: a module for each model, which says where upstream is (SOURCE), what it
gives (ENTRIES) and what it cannot give (NOT_MADE: entry, why)."""
