//! libdevice: NVIDIA's math functions (`exp`, `tanh`, ...) as LLVM bitcode, which kernels are linked with when they are
//! compiled at run time.
//!
//! The backend looks for it where [`find`] does (cubecl-llvm, `src/nvptx/libdevice.rs`) and panics in the middle of a
//! kernel if it is not there, so it is looked for before a device is opened.

use std::path::{Path, PathBuf};

/// Names the folder of a CUDA toolkit.
const VARIABLE: &str = "CUDA_PATH";
/// Toolkits that are looked at while [`VARIABLE`] is unset.
const ROOTS: [&str; 4] = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"];
/// In a toolkit.
const FOLDER: &str = "nvvm/libdevice";
const FILE: &str = "libdevice.10.bc";

/// The file is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{FILE} is not at {}; install NVIDIA's package cuda-nvvm (in CUDA 12: cuda-nvcc), or PyPI's nvidia-nvvm and set \
     ${VARIABLE} to the folder that has {FOLDER} in it",
    list(.searched)
)]
pub struct NoLibdevice {
    /// Where it was looked for.
    pub searched: Vec<PathBuf>,
}

fn list(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

/// The file that kernels will be linked with.
///
/// # Errors
/// If there is none, with all places that were searched.
pub fn find() -> Result<PathBuf, NoLibdevice> {
    let toolkit = std::env::var(VARIABLE).ok().map(PathBuf::from);
    find_in(toolkit, &ROOTS.map(PathBuf::from))
}

/// The one that `toolkit` names is the only one that counts; else the first root with the folder, even if it is empty.
fn find_in(toolkit: Option<PathBuf>, roots: &[PathBuf]) -> Result<PathBuf, NoLibdevice> {
    let file = |root: &Path| root.join(FOLDER).join(FILE);
    let root = match &toolkit {
        Some(root) => Some(root),
        None => roots.iter().find(|root| root.join(FOLDER).is_dir()),
    };
    if let Some(found) = root.map(|root| file(root)).filter(|file| file.is_file()) {
        return Ok(found);
    }
    let searched = match root {
        Some(root) => vec![file(root)],
        None => roots.iter().map(|root| file(root)).collect(),
    };
    Err(NoLibdevice { searched })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A toolkit's folder, with the file or without.
    fn toolkit(parent: &Path, name: &str, files: &[&str]) -> PathBuf {
        let root = parent.join(name);
        std::fs::create_dir_all(root.join(FOLDER)).unwrap();
        for file in files {
            std::fs::write(root.join(FOLDER).join(file), "").unwrap();
        }
        root
    }

    #[test]
    fn it_is_found_where_the_backend_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let named = toolkit(folder.path(), "named", &[FILE]);
        let roots = [
            folder.path().join("absent"),
            toolkit(folder.path(), "installed", &[FILE]),
        ];
        let found = |toolkit: Option<&PathBuf>| find_in(toolkit.cloned(), &roots).unwrap();
        assert_eq!(found(Some(&named)), named.join(FOLDER).join(FILE));
        assert_eq!(found(None), roots[1].join(FOLDER).join(FILE));
    }

    #[test]
    fn every_place_is_named_when_it_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let empty = toolkit(folder.path(), "empty", &["README"]);
        let full = toolkit(folder.path(), "full", &[FILE]);
        let absent = ["a", "b"].map(|name| folder.path().join(name));
        let error = find_in(None, &absent).unwrap_err();
        assert_eq!(error.searched.len(), 2);
        let text = error.to_string();
        let first = absent[0].join(FOLDER).join(FILE).display().to_string();
        assert!(
            text.contains(&first) && text.contains("nvidia-nvvm"),
            "{text}"
        );
        // What is named or comes first hides what comes after it, as in the backend.
        for error in [
            find_in(None, &[empty.clone(), full.clone()]).unwrap_err(),
            find_in(Some(empty.clone()), std::slice::from_ref(&full)).unwrap_err(),
        ] {
            assert_eq!(error.searched, [empty.join(FOLDER).join(FILE)]);
        }
    }
}
