//! The run file's sections. Defaults are the published settings for FLUX.1-Kontext-dev.

use retouch_settings::choice;
pub use retouch_settings::{Checkpointing, DeviceName, Dtype, LoraConfig, Solver};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Devices;

choice! {
    /// How the size of edited images follows from their source.
    Sizing {
        /// `height` x `width`: the middle of the source is cut out.
        Fixed = "fixed",
        /// The source's aspect, with as many pixels as `height` x `width`.
        Aspect = "aspect",
        /// The nearest in aspect of the sizes that FLUX.1-Kontext was trained on, about a megapixel each.
        Preferred = "preferred",
    }
}

choice! {
    /// Which groups are left out of training.
    FilterRule {
        /// Drop if mean > tau_mean and std < tau_std.
        Paper = "paper",
        /// Keep only if std > tau_std and mean < tau_mean.
        Strict = "strict",
        /// Keep all.
        None = "none",
    }
}

choice! {
    /// What advantages are divided by.
    AdvantageStd {
        /// The standard deviation of all rewards of the iteration.
        Global = "global",
        /// The group's own.
        Group = "group",
    }
}

choice! {
    /// What becomes of advantages before they weigh the two losses.
    AdvMode {
        /// As they are.
        All = "all",
        /// Negative ones are 0.
        PositiveOnly = "positive_only",
        /// Positive ones are 0.
        NegativeOnly = "negative_only",
        /// 1 where positive, else 0.
        OneOnly = "one_only",
        /// The sign.
        Binary = "binary",
    }
}

choice! {
    /// The schedule of eta in theta_old <- eta theta_old + (1 - eta) theta.
    OldPolicy {
        /// min(0.001 step, 0.5).
        Default = "default",
        /// 0.
        OnPolicy = "on_policy",
        /// 0 for 75 steps, then 0.0075 per step up to 0.999.
        Delayed = "delayed",
    }
}

choice! {
    /// What becomes of a sample whose loss or gradient is NaN or infinite.
    NotFinite {
        /// The run ends there, with a checkpoint of what was committed before.
        Stop = "stop",
        /// The iteration is made without it.
        Drop = "drop",
    }
}

choice! {
    /// The policy from which the KL term measures the trained one's distance.
    Reference {
        /// The base model without an adapter.
        Base = "base",
        /// The adapter that the run starts from (`lora.init`).
        Init = "init",
    }
}

choice! {
    /// How learner ranks sum gradients.
    CollectiveKind {
        /// The fixed tree over sockets: the same bits for every rank count (A9).
        Tcp = "tcp",
        /// NCCL: f32 rounding depends on the rank count.
        Nccl = "nccl",
    }
}

choice! {
    /// What scores a candidate.
    RewardKind {
        /// A multimodal language model's digit logits.
        Mllm = "mllm",
    }
}

/// The base editor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Folder in the diffusers layout, or a model's id on the Hugging Face Hub that `hf download` has fetched.
    pub path: String,
    /// How the size of edited images follows from their source.
    pub sizing: Sizing,
    /// Height of edited images in pixels.
    pub height: u32,
    /// Width of edited images in pixels.
    pub width: u32,
    /// Most prompt tokens; longer prompts are cut.
    pub max_sequence_length: u32,
    /// Number type of the weights.
    pub dtype: Dtype,
    /// Where rollout workers compute: `cpu`, a card `cuda:N`, a list of cards, or `cuda:*` for all of a node.
    pub device: Devices,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            path: "models/FLUX.1-Kontext-dev".into(),
            sizing: Sizing::Fixed,
            height: 512,
            width: 512,
            max_sequence_length: 128,
            dtype: Dtype::Bf16,
            device: DeviceName::Cuda(0).into(),
        }
    }
}

/// The training pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetConfig {
    /// Folder with `images/`, `train_metadata.jsonl` and `test_metadata.jsonl`.
    pub path: String,
    /// Most source images of a row, for which memory is planned; 0 counts those of the rows.
    pub sources_max: u32,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self {
            path: "datasets/edit-r1".into(),
            sources_max: 0,
        }
    }
}

/// Sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Groups drawn per iteration.
    pub groups_per_iteration: u32,
    /// Candidates per group.
    pub group_size: u32,
    /// Solver steps.
    pub num_inference_steps: u32,
    /// The sampler.
    pub solver: Solver,
    /// Guidance that is given to the model as an input.
    pub guidance_scale: f64,
    /// Classifier-free guidance while sampling, with the negative prompt " "; 1 is off.
    pub true_cfg_scale: f64,
    /// How many iterations a sample's policy is behind the one that learns from it: iteration i is sampled by the
    /// policy of iteration i - 1 - staleness_max, while those between are trained. 0 waits for the newest.
    pub staleness_max: u32,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            groups_per_iteration: 24,
            group_size: 12,
            num_inference_steps: 6,
            solver: Solver::Dpm2,
            guidance_scale: 2.5,
            true_cfg_scale: 1.0,
            staleness_max: 0,
        }
    }
}

/// Scoring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Permute rewards inside each group before advantages: the control that must not learn.
    pub permute: bool,
    /// Number type of the judges' weights.
    pub dtype: Dtype,
    /// Where reward workers compute: `cpu`, a card `cuda:N`, a list of cards, or `cuda:*` for all of a node.
    pub device: Devices,
    /// What is scored; a sample's reward is the weighted mean.
    pub terms: Vec<RewardTerm>,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            permute: false,
            dtype: Dtype::Bf16,
            device: DeviceName::Cuda(0).into(),
            terms: vec![RewardTerm::default()],
        }
    }
}

/// One part of the reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardTerm {
    /// Its name in scores and reports.
    pub name: String,
    /// What scores it.
    pub kind: RewardKind,
    /// The judge's folder, or its id on the Hugging Face Hub.
    pub path: String,
    /// Its share, relative to the other terms'. A term of weight 0 is only watched: scored and
    /// shown, and no part of the reward.
    pub weight: f64,
    /// The prompt template: a file, or `default` for the built-in one.
    pub template: String,
}

impl RewardTerm {
    /// Whether it is scored and shown without being a part of the reward.
    pub fn is_watched(&self) -> bool {
        self.weight == 0.0
    }
}

impl Default for RewardTerm {
    fn default() -> Self {
        Self {
            name: "edit".into(),
            kind: RewardKind::Mllm,
            path: "models/Qwen2.5-VL-32B-Instruct".into(),
            weight: 1.0,
            template: "default".into(),
        }
    }
}

/// The low-variance group filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilterConfig {
    /// Which groups are left out.
    pub rule: FilterRule,
    /// Threshold on a group's mean reward.
    pub tau_mean: f64,
    /// Threshold on a group's standard deviation.
    pub tau_std: f64,
    /// Whether pairs that meet the paper's rule are left out of later iterations.
    pub ban: bool,
    /// How often groups that were left out are replaced within an iteration.
    pub refill_rounds_max: u32,
}

impl Default for FilterConfig {
    fn default() -> Self {
        Self {
            rule: FilterRule::Paper,
            tau_mean: 0.9,
            tau_std: 0.05,
            ban: true,
            refill_rounds_max: 0,
        }
    }
}

/// From rewards to advantages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdvantageConfig {
    /// What advantages are divided by.
    pub std: AdvantageStd,
    /// Advantages are clipped to this, on both sides.
    pub adv_clip_max: f64,
    /// What becomes of them before they weigh the two losses.
    pub adv_mode: AdvMode,
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        Self {
            std: AdvantageStd::Global,
            adv_clip_max: 5.0,
            adv_mode: AdvMode::All,
        }
    }
}

/// Training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LearnerConfig {
    /// Learner processes. Without a number, one for each card of a list in `device`, as far as `gradient_shards`
    /// allows; else 1.
    pub ranks: u32,
    /// With fewer than these the run waits, however long they are missing.
    pub ranks_min: u32,
    /// Learners that joined later train too, up to these; 0 is `ranks`.
    pub ranks_max: u32,
    /// Parts that gradients are summed over in a fixed tree (A9); divisible by `ranks`.
    pub gradient_shards: u32,
    /// Samples per forward.
    pub micro_batch_size: u32,
    /// What is kept of a forward pass until it goes back; the gradients are the same.
    pub activation_checkpointing: Checkpointing,
    /// How far the implicit positive and negative policies lie from the old one.
    pub nft_beta: f64,
    /// Weight of the distance from the reference policy.
    pub kl_beta: f64,
    /// The reference policy.
    pub reference: Reference,
    /// AdamW's step size.
    pub learning_rate: f64,
    /// Updates in which the learning rate grows to its full value; 0 for none.
    pub warmup_iterations: u32,
    /// AdamW's decay of the mean of gradients.
    pub adam_beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub adam_beta2: f64,
    /// AdamW's term that keeps its divisor from 0.
    pub adam_epsilon: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are clipped to this norm.
    pub max_grad_norm: f64,
    /// Share of the sampler's timesteps that each sample is trained on.
    pub timestep_fraction: f64,
    /// How the old policy follows: eta in theta_old <- eta theta_old + (1 - eta) theta.
    pub old_policy: OldPolicy,
    /// Limit of the EMA's decay.
    pub ema_decay_max: f64,
    /// What becomes of a sample whose loss or gradient is NaN or infinite.
    pub not_finite: NotFinite,
    /// Iterations between durable checkpoints.
    pub checkpoint_every: u32,
    /// How ranks sum gradients.
    pub collective: CollectiveKind,
    /// Whether sums over sockets carry tags that only the run's learners can make. Without, nobody
    /// else can take part either, but whoever is on the way could change gradients.
    pub seal_sums: bool,
    /// Where learners compute: `cpu`, a card `cuda:N`, a list of cards, or `cuda:*` for all of a node.
    pub device: Devices,
}

impl Default for LearnerConfig {
    fn default() -> Self {
        Self {
            ranks: 1,
            ranks_min: 1,
            ranks_max: 0,
            gradient_shards: 8,
            micro_batch_size: 3,
            activation_checkpointing: Checkpointing::Block,
            nft_beta: 1.0,
            kl_beta: 1e-4,
            reference: Reference::Base,
            learning_rate: 3e-4,
            warmup_iterations: 0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 1e-4,
            max_grad_norm: 1.0,
            timestep_fraction: 0.99,
            old_policy: OldPolicy::Default,
            ema_decay_max: 0.9,
            not_finite: NotFinite::Stop,
            checkpoint_every: 10,
            collective: CollectiveKind::Tcp,
            seal_sums: true,
            device: DeviceName::Cuda(0).into(),
        }
    }
}

/// Thresholds of what is told as an alarm; 0 switches one off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlarmConfig {
    /// Gradient norm before clipping: above it, updates are mostly clipped away.
    pub grad_norm_max: f64,
    /// Mean squared distance of the trained policy's velocity from the base's.
    pub kl_max: f64,
    /// Mean over groups of the standard deviation of rewards: below it, there is nothing left to
    /// learn, or the judge is fooled.
    pub reward_std_min: f64,
    /// Iterations in a row of which the filter keeps nothing: the judge gives all samples the same, or the filter's
    /// rule fits no group. 0 never rings.
    pub untrained_max: u32,
    /// How far the mean score of a watched term (a reward term of weight 0) over ten iterations may fall below the best
    /// of earlier ten, among the last hundred: the policy pleases the judges that it learns from and not this one.
    pub watched_fall_max: f64,
}

impl Default for AlarmConfig {
    fn default() -> Self {
        Self {
            grad_norm_max: 100.0,
            kl_max: 1.0,
            reward_std_min: 0.005,
            untrained_max: 3,
            watched_fall_max: 0.1,
        }
    }
}

/// Where checkpoints go besides the run folder, and which stay. By default all stay, in the run folder
/// alone: nothing is deleted that nobody asked to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Gets a copy of each, from which the run goes on where its folder is empty: `file:///FOLDER`,
    /// `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`, one run's alone; empty for none.
    pub url: String,
    /// How many of the last stay, in the run folder and at the URL; 0 keeps all.
    pub keep_last: u32,
    /// How many stay besides of those whose policy's samples the judge gave the highest mean reward.
    pub keep_best: u32,
}

/// Processes, deadlines and limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Rollout workers that `launch` starts. Without a number, one for each card of `model.device`.
    pub rollout_workers: u32,
    /// Reward workers that `launch` starts. Without a number, one for each card of `reward.device`.
    pub reward_workers: u32,
    /// Compute threads of each worker; 0 shares the cores among the workers.
    pub threads_per_worker: u32,
    /// A worker is lost when it has been silent for three of these.
    pub heartbeat_ms: u64,
    /// A task without a result after this long is a failed attempt.
    pub lease_s: u64,
    /// Failed attempts after which a group is dropped, or a training step fails the run.
    pub attempts_max: u32,
    /// How long a lost learner is waited for before the collective goes on without it.
    pub rank_grace_s: u64,
    /// How long a report with free slots is held until there is work.
    pub report_wait_ms_max: u64,
    /// The coordinator's address; port 0 takes a free one.
    pub listen: String,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            rollout_workers: 1,
            reward_workers: 1,
            threads_per_worker: 0,
            heartbeat_ms: 1_000,
            lease_s: 600,
            attempts_max: 3,
            rank_grace_s: 60,
            report_wait_ms_max: 5_000,
            listen: "127.0.0.1:0".into(),
        }
    }
}

/// Pictures that a run leaves in `samples/` of its folder while it goes on. They change nothing that is learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// Iterations between pictures of held-out pairs as the EMA adapter edits them, from the first checkpoint at or
    /// after each multiple of it; 0 for none.
    pub every: u32,
    /// The first so many held-out pairs are edited, with the settings of `evaluation`.
    pub pairs: u32,
    /// Of one group of each iteration all candidates are kept, with scores: of the newest so many iterations, and of as
    /// many before them, evenly spread. 0 keeps none.
    pub keep_groups: u32,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self {
            every: 10,
            pairs: 8,
            keep_groups: 100,
        }
    }
}

/// Held-out evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Held-out pairs; 0 evaluates nothing.
    pub pairs: u32,
    /// Solver steps.
    pub num_inference_steps: u32,
    /// The sampler.
    pub solver: Solver,
    /// Guidance that is given to the model as an input.
    pub guidance_scale: f64,
    /// Classifier-free guidance; 1 is off.
    pub true_cfg_scale: f64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            pairs: 256,
            num_inference_steps: 15,
            solver: Solver::Euler,
            guidance_scale: 3.5,
            true_cfg_scale: 1.0,
        }
    }
}
