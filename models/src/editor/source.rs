//! Where a role's editor comes from.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device};

use super::{Editor, Parts};
use crate::weights::LoadError;

/// Loads editors for the roles of a process.
#[derive(Clone, Debug, Default)]
pub enum EditorSource {
    /// Each for one role alone, and no more of it than it needs.
    #[default]
    Own,
    /// One transformer for all roles of the process: it is loaded by the first that asks, and the others' weights are
    /// the same memory. Encoders are a role's own, which may let go of them when it has nothing to do.
    Shared(Arc<Mutex<Option<Loaded>>>),
}

/// An editor without encoders, and what it was loaded from.
#[derive(Debug)]
pub struct Loaded {
    from: (PathBuf, Device, DType),
    editor: Editor,
}

impl EditorSource {
    /// A source that has loaded nothing yet; its clones share what it loads.
    pub fn shared() -> Self {
        Self::Shared(Arc::default())
    }

    /// An editor with at least these parts. One that another role has on the same device is shared.
    ///
    /// # Errors
    /// As [`Editor::load_as`].
    pub fn load(
        &self,
        folder: &Path,
        device: &Device,
        parts: Parts,
        dtype: DType,
    ) -> Result<Editor, LoadError> {
        let Self::Shared(shared) = self else {
            return Editor::load_as(folder, device, parts, dtype);
        };
        let mut loaded = shared.lock().unwrap_or_else(|e| e.into_inner());
        let from = (folder.to_owned(), device.clone(), dtype);
        let mut editor = match &*loaded {
            Some(loaded) if loaded.from == from => loaded.editor.clone(),
            Some(_) => return Editor::load_as(folder, device, parts, dtype),
            None => {
                let editor = Editor::load_as(folder, device, Parts::Transformer, dtype)?;
                *loaded = Some(Loaded {
                    from,
                    editor: editor.clone(),
                });
                editor
            }
        };
        if parts == Parts::All {
            editor.load_encoders(folder, dtype)?;
        }
        Ok(editor)
    }
}
