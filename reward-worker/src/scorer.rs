//! The judges of a run and what they make of a group together.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use burn::tensor::{DType, Device};
use bytes::Bytes;
use image::RgbImage;
use retouch_models::{
    device,
    images::{self, ImageFileError},
    judge::{Judge, JudgeError, JudgeRequest, JudgeScore, Template, TemplateError},
    memory,
};
use retouch_proto::{
    config::{RewardConfig, RewardKind, RewardTerm},
    task::{SampleScore, TermFailure, TermScore},
};
use retouch_worker::panic_message;
use thiserror::Error;

/// The template that the judge's own one stands for in the run file.
const DEFAULT_TEMPLATE: &str = "default";

/// Judges that can't be loaded.
#[derive(Debug, Error)]
pub enum ScorerError {
    /// A judge's folder.
    #[error("reward term {term}: the judge in {} cannot be loaded: {source}", path.display())]
    Judge {
        /// The term.
        term: String,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: Box<JudgeError>,
    },
    /// A term's template.
    #[error("reward term {term}: {source}")]
    Template {
        /// The term.
        term: String,
        /// What is wrong with it.
        source: TemplateError,
    },
}

/// A group without a score.
#[derive(Debug, Error)]
pub enum ScoreError {
    /// An image can't be read.
    #[error("{which} is not a PNG image that is read: {source}")]
    Image {
        /// Which of the group's images.
        which: String,
        /// Why.
        source: ImageFileError,
    },
    /// A judge gave no score.
    #[error("reward term {term}: {source}")]
    Judge {
        /// The term.
        term: String,
        /// Why.
        source: Box<JudgeError>,
    },
    /// A judge, which was let go of in between, can't be loaded again.
    #[error("reward term {term}: the judge cannot be loaded again: {source}")]
    Reload {
        /// The term.
        term: String,
        /// Why.
        source: Box<JudgeError>,
    },
}

impl ScoreError {
    /// Whether another worker could do better: the same input gives the same error
    /// everywhere, but numbers that are none may be this machine's fault, and so may files that were there.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Image { .. } => false,
            Self::Judge { source, .. } => matches!(**source, JudgeError::NotFinite { .. }),
            Self::Reload { .. } => true,
        }
    }
}

/// A group of decoded images.
#[derive(Clone, Debug)]
pub struct Group {
    /// The instruction.
    pub prompt: String,
    /// What the judge looks for.
    pub requirement: String,
    /// The images that the edit is made of.
    pub sources: Vec<RgbImage>,
    /// The candidates.
    pub edits: Vec<RgbImage>,
}

impl Group {
    /// Decodes a group's PNG images.
    ///
    /// # Errors
    ///
    /// If one can't be read.
    pub fn decode(
        prompt: String,
        requirement: String,
        sources: &[Bytes],
        edits: &[Bytes],
    ) -> Result<Self, ScoreError> {
        Ok(Self {
            prompt,
            requirement,
            sources: decode_all(sources, "source image")?,
            edits: decode_all(edits, "edit")?,
        })
    }
}

fn decode_all(pngs: &[Bytes], what: &str) -> Result<Vec<RgbImage>, ScoreError> {
    let decode = |(index, png): (usize, &Bytes)| {
        images::from_png(png).map_err(|source| ScoreError::Image {
            which: format!("{what} {index}"),
            source,
        })
    };
    pngs.iter().enumerate().map(decode).collect()
}

/// What the terms say about a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// One per candidate, in sample order.
    pub scores: Vec<SampleScore>,
    /// Watched terms that gave no scores, and why.
    pub unscored: Vec<TermFailure>,
}

/// All reward terms of a run.
#[derive(Debug)]
pub struct Scorer {
    terms: Vec<Term>,
    device: Device,
}

#[derive(Debug)]
struct Term {
    name: String,
    /// 0 for a term that is only watched.
    weight: f64,
    judge: Arc<Resident>,
    template: Option<Template>,
}

/// A judge that may leave the device while there is nothing to judge.
#[derive(Debug)]
struct Resident {
    folder: PathBuf,
    device: Device,
    dtype: DType,
    judge: Mutex<Option<Arc<Judge>>>,
}

/// A term and its scores, one per candidate.
type Opinion<'a> = (&'a Term, Vec<JudgeScore>);

impl Scorer {
    /// Loads the judges of all terms, each folder once.
    ///
    /// # Errors
    ///
    /// If a file is missing or broken, a watched term's too: that is better known before the run than
    /// after it.
    pub fn load(config: &RewardConfig, device: &Device) -> Result<Self, ScorerError> {
        let mut judges = HashMap::new();
        let dtype = device::float_type(config.dtype);
        let terms = config
            .terms
            .iter()
            .map(|term| Term::load(term, device, dtype, &mut judges));
        Ok(Self {
            terms: terms.collect::<Result<_, _>>()?,
            device: device.clone(),
        })
    }

    /// Where the judges are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Lets go of the judges, and of all memory that they have on the device. The next group takes some seconds more
    /// for it.
    pub fn rest(&self) {
        self.terms.iter().for_each(|term| term.judge.clear());
        memory::release(&self.device);
    }

    /// Scores a group: every term judges all edits in one call.
    ///
    /// # Errors
    ///
    /// If a term of weight above 0 has no score for one edit; then no edit has a reward (A5).
    pub fn score(&self, group: &Group) -> Result<Scored, ScoreError> {
        let (mut opinions, mut unscored) = (Vec::new(), Vec::new());
        for term in &self.terms {
            if term.weight > 0.0 {
                opinions.push((term, term.score(group)?));
                continue;
            }
            match term.watch(group) {
                Ok(scores) => opinions.push((term, scores)),
                Err(reason) => {
                    tracing::warn!(term = term.name, reason, "a watched term has no scores");
                    unscored.push(TermFailure {
                        term: term.name.clone(),
                        reason,
                    });
                }
            }
        }
        let edits = 0..group.edits.len();
        Ok(Scored {
            scores: edits.map(|edit| weigh(&opinions, edit)).collect(),
            unscored,
        })
    }
}

/// The weighted mean of what the terms say about one edit, and what each says.
fn weigh(opinions: &[Opinion<'_>], edit: usize) -> SampleScore {
    // Watched terms are left out rather than multiplied by 0, so that no value of theirs reaches a reward.
    let counted = || opinions.iter().filter(|(term, _)| term.weight > 0.0);
    let weights: f64 = counted().map(|(term, _)| term.weight).sum();
    let weighted: f64 = counted()
        .map(|(term, scores)| term.weight * scores[edit].reward)
        .sum();
    let named = opinions.iter().map(|(term, scores)| TermScore {
        name: term.name.clone(),
        value: scores[edit].reward,
        probabilities: scores[edit].probabilities,
        entropy: scores[edit].entropy,
    });
    SampleScore {
        reward: weighted / weights,
        terms: named.collect(),
    }
}

impl Term {
    fn load(
        term: &RewardTerm,
        device: &Device,
        dtype: DType,
        judges: &mut HashMap<String, Arc<Resident>>,
    ) -> Result<Self, ScorerError> {
        let RewardKind::Mllm = term.kind;
        let judge = match judges.get(&term.path) {
            Some(judge) => judge.clone(),
            None => {
                let judge = Arc::new(Resident::load(term, device, dtype)?);
                judges.insert(term.path.clone(), judge.clone());
                judge
            }
        };
        let template =
            (term.template != DEFAULT_TEMPLATE).then(|| Template::load(Path::new(&term.template)));
        let template = template
            .transpose()
            .map_err(|source| ScorerError::Template {
                term: term.name.clone(),
                source,
            })?;
        Ok(Self {
            name: term.name.clone(),
            weight: term.weight,
            judge,
            template,
        })
    }

    fn score(&self, group: &Group) -> Result<Vec<JudgeScore>, ScoreError> {
        let judge = self.judge.get().map_err(|source| ScoreError::Reload {
            term: self.name.clone(),
            source: Box::new(source),
        })?;
        let request = JudgeRequest {
            sources: &group.sources,
            edits: &group.edits,
            prompt: &group.prompt,
            requirement: &group.requirement,
            template: self.template.as_ref(),
        };
        let scores = judge.score(&request);
        scores.map_err(|source| ScoreError::Judge {
            term: self.name.clone(),
            source: Box::new(source),
        })
    }

    /// As [`Self::score`], for a term that nothing depends on: a panic, such as that of a device
    /// without memory left, is a reason too and not the end of the group.
    fn watch(&self, group: &Group) -> Result<Vec<JudgeScore>, String> {
        let scored = catch_unwind(AssertUnwindSafe(|| self.score(group)));
        let scored =
            scored.map_err(|panic| format!("the judge panicked: {}", panic_message(&*panic)))?;
        scored.map_err(|error| error.to_string())
    }
}

impl Resident {
    fn load(term: &RewardTerm, device: &Device, dtype: DType) -> Result<Self, ScorerError> {
        let resident = Self {
            folder: PathBuf::from(&term.path),
            device: device.clone(),
            dtype,
            judge: Mutex::default(),
        };
        let loaded = resident.get().map(drop);
        loaded.map_err(|source| ScorerError::Judge {
            term: term.name.clone(),
            path: resident.folder.clone(),
            source: Box::new(source),
        })?;
        Ok(resident)
    }

    /// The judge, loaded if it is not there.
    fn get(&self) -> Result<Arc<Judge>, JudgeError> {
        let mut loaded = self.judge.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(judge) = &*loaded {
            return Ok(judge.clone());
        }
        let judge = Arc::new(Judge::load_as(&self.folder, &self.device, self.dtype)?);
        Ok(loaded.insert(judge).clone())
    }

    fn clear(&self) {
        *self.judge.lock().unwrap_or_else(|e| e.into_inner()) = None;
    }
}
