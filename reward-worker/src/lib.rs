//! reward-worker
