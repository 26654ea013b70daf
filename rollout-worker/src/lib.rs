//! rollout-worker
