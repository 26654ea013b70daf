//! A limit on everything that crosses a process border (A7).

/// Largest `Coordinator` or `Control` message.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Largest `Enrollment` message: a token, a key, two certificates.
pub const ENROLL_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Largest `Judge` message: whole groups of images inline.
pub const JUDGE_MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Size of one chunk of a blob in transfer.
pub const BLOB_CHUNK_BYTES: usize = 1 << 20;
/// Largest `Blobs` message: one chunk and its envelope.
pub const BLOB_MESSAGE_BYTES_MAX: usize = BLOB_CHUNK_BYTES + 1024;
/// Largest blob.
pub const BLOB_BYTES_MAX: u64 = 64 << 30;
/// Owners named in one blob reference.
pub const OWNERS_MAX: usize = 8;
/// Length of a worker's or run's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Length of an address, path or device description.
pub const ADDRESS_BYTES_MAX: usize = 1024;
/// Length of a prompt or requirement.
pub const PROMPT_BYTES_MAX: usize = 16 << 10;
/// Length of a failure's reason; longer ones are cut by the sender.
pub const REASON_BYTES_MAX: usize = 4 << 10;
/// Source images of an edit.
pub const SOURCES_MAX: usize = 8;
/// Candidates in a group.
pub const GROUP_SIZE_MAX: usize = 256;
/// Groups in an iteration, refill rounds included.
pub const GROUPS_MAX: usize = 16_384;
/// Iterations that samples may be behind the policy that learns from them.
pub const STALENESS_MAX: usize = 16;
/// Reward terms of a sample.
pub const TERMS_MAX: usize = 64;
/// Ranks of the learners' collective.
pub const RANKS_MAX: usize = 1024;
/// Tasks that one worker runs at a time, and results in one report.
pub const SLOTS_MAX: usize = 256;
/// Blob hashes in one registration or report.
pub const HASHES_MAX: usize = 65_536;
/// Hints of blobs to fetch early in one reply.
pub const PREFETCH_MAX: usize = 256;
/// Groups in one answer to a person.
pub const GROUPS_SHOWN_MAX: u32 = 1_000;
/// Length of a run file in a reply.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;
