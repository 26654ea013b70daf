//! Editors as diffusers' pipeline folders.

use std::path::Path;

use burn::tensor::{DType, Device};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::base::{Files, Loader};
use super::base_model::PipelineClass;
use super::{Base, Editor, ImageSize, LatentFormat, Parts, TextStart};
use crate::hub;
use crate::init::Init;
use crate::scheduler::FlowMatchScheduler;
use crate::weights::{LoadError, read_config, require_file, write_config};

pub(super) const INDEX_FILE: &str = "model_index.json";

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: String,
}

impl Editor {
    /// The editor of a diffusers pipeline folder, or of such a model's id (see [`hub::locate`]), frozen, in f32.
    ///
    /// # Errors
    /// If a part can't be loaded, the parts do not fit each other, or the pipeline is another one.
    pub fn load(folder: &Path, device: &Device, parts: Parts) -> Result<Self, LoadError> {
        Self::load_as(folder, device, parts, DType::F32)
    }

    /// As [`Editor::load`], with the large models' weights in the given float type.
    ///
    /// # Errors
    /// As [`Editor::load`].
    pub fn load_as(
        folder: &Path,
        device: &Device,
        parts: Parts,
        dtype: DType,
    ) -> Result<Self, LoadError> {
        let folder = &hub::locate(folder)?;
        let files = Files {
            folder,
            device,
            parts,
            dtype,
        };
        let base = (loader(folder)?.load)(files)?;
        Self::beside(base, folder, device)
    }

    /// Whether the encoders are loaded.
    pub fn has_encoders(&self) -> bool {
        self.base.has_encoders()
    }

    /// Loads the encoders of a diffusers pipeline folder, of the editor's own one as a rule.
    ///
    /// # Errors
    /// As [`Editor::load_as`].
    pub fn load_encoders(&mut self, folder: &Path, dtype: DType) -> Result<(), LoadError> {
        let device = self.device().clone();
        let folder = &hub::locate(folder)?;
        self.base.load_encoders(Files {
            folder,
            device: &device,
            parts: Parts::All,
            dtype,
        })
    }

    /// Lets go of the encoders. What memory they had is free where no clone of the editor has them too.
    pub fn unload_encoders(&mut self) {
        self.base.unload_encoders();
    }

    /// An editor with a transformer that has learned nothing, in f32; of it, the folder needs only the configuration.
    ///
    /// # Errors
    /// As [`Editor::load`].
    pub fn random(
        folder: &Path,
        device: &Device,
        text: TextStart,
        seed: u64,
    ) -> Result<Self, LoadError> {
        let folder = &hub::locate(folder)?;
        let files = Files {
            folder,
            device,
            parts: Parts::All,
            dtype: DType::F32,
        };
        let init = Init::new(seed, device);
        let base = (loader(folder)?.random)(files, text, &init)?;
        Self::beside(base, folder, device)
    }

    fn beside(base: Base, folder: &Path, device: &Device) -> Result<Self, LoadError> {
        let scheduler = FlowMatchScheduler::load(&folder.join("scheduler"))?;
        Ok(Self::new(base, scheduler, device))
    }

    /// Saves the editor as a diffusers pipeline folder.
    ///
    /// # Errors
    /// If the folder can't be written, or the encoders were not loaded.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        self.base.save(folder)?;
        self.scheduler.save(&folder.join("scheduler"))
    }
}

fn loader(folder: &Path) -> Result<&'static Loader, LoadError> {
    Loader::find(&class_name(folder)?, folder)
}

/// The class that a pipeline folder says it is of.
pub(super) fn class_name(folder: &Path) -> Result<String, LoadError> {
    let index: ModelIndex = read_config(&require_file(folder, INDEX_FILE, "a base editor")?)?;
    Ok(index.class_name)
}

/// Writes the list of a pipeline's parts.
pub(super) fn save_index(folder: &Path, class: &PipelineClass) -> Result<(), LoadError> {
    let mut index = Map::new();
    index.insert("_class_name".to_owned(), json!(class.name));
    let absent = class.absent_parts.iter();
    index.extend(absent.map(|name| ((*name).to_owned(), json!([null, null]))));
    let parts = class.parts.iter();
    index.extend(parts.map(|part| (part.name.to_owned(), json!([part.library, part.class]))));
    write_config(&folder.join(INDEX_FILE), &Value::Object(index))
}

/// A field of the transformer's configuration that other parts decide.
#[derive(Debug)]
pub struct Width {
    field: &'static str,
    found: usize,
    expected: Option<usize>,
    supported: &'static str,
}

impl Width {
    /// `in_channels` and `out_channels`, which the autoencoder decides.
    pub(super) fn of_images(
        [in_channels, out_channels]: [usize; 2],
        format: LatentFormat,
        supported: [&'static str; 2],
    ) -> [Self; 2] {
        let [_, token] = format.shape(ImageSize::square(format.unit()));
        [
            Self::new("in_channels", in_channels, Some(token), supported[0]),
            Self::new("out_channels", out_channels, Some(token), supported[1]),
        ]
    }

    /// `expected` is what it must be, `None` if those parts were not loaded; `supported` says it in words.
    pub(super) fn new(
        field: &'static str,
        found: usize,
        expected: Option<usize>,
        supported: &'static str,
    ) -> Self {
        Self {
            field,
            found,
            expected,
            supported,
        }
    }
}

/// What the parts hand to the transformer is as wide as it expects.
pub(super) fn check_widths(
    folder: &Path,
    widths: impl IntoIterator<Item = Width>,
) -> Result<(), LoadError> {
    let wrong = |width: &Width| {
        width
            .expected
            .is_some_and(|expected| expected != width.found)
    };
    match widths.into_iter().find(wrong) {
        None => Ok(()),
        Some(Width {
            field,
            found,
            supported,
            ..
        }) => {
            let path = folder.join("transformer").join("config.json");
            Err(LoadError::unsupported(&path, field, found, supported))
        }
    }
}
