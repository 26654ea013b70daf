//! The four roles as a cluster starts them: one process each.
