//! The learner: DiffusionNFT on sealed iterations, and supervised fine-tuning.

pub mod adamw;
pub mod clip;
pub mod collective;
pub mod nft;
pub mod schedule;
pub mod shards;
pub mod state;
