//! Which of a model folder's files have its weights.

use std::fs;
use std::path::{Path, PathBuf};

use super::LoadError;
use super::file::{DIFFUSERS_FILE, TRANSFORMERS_FILE};

/// Variants that are taken where the plain files are absent; bf16, as models are trained, before fp16.
const VARIANTS: [&str; 2] = ["bf16", "fp16"];

/// Ends of files that torch pickles weights into.
const PICKLES: [&str; 4] = ["bin", "ckpt", "pt", "pth"];
/// Pickles of a training that are no weights.
const NO_WEIGHTS: [&str; 3] = ["training_args", "optimizer", "scheduler"];

/// Where a model's weights are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In one file.
    File(PathBuf),
    /// In the shards that this index names.
    Index(PathBuf),
}

/// The weights of a folder, as the library that wrote it would find them.
///
/// # Errors
/// If there are none; the error says what is there instead.
pub(super) fn locate(folder: &Path) -> Result<Found, LoadError> {
    let there = candidates()
        .into_iter()
        .find(|(name, _)| folder.join(name).is_file());
    match there {
        Some((name, false)) => Ok(Found::File(folder.join(name))),
        Some((name, true)) => Ok(Found::Index(folder.join(name))),
        None => Err(LoadError::format(folder, absent(folder))),
    }
}

/// Names of weight files, and whether each is an index of shards; the first that is there counts.
///
/// diffusers looks for an index first, transformers for the single file.
fn candidates() -> Vec<(String, bool)> {
    let plain = [None];
    let variants = VARIANTS.map(Some);
    let of = |variant: &Option<&str>| {
        let single = |file: &str| (with_variant(file, *variant), false);
        let indices = |file: &str| {
            let index = format!("{file}.index.json");
            let newer = with_variant(&index, *variant);
            // diffusers once put the variant before `.index.json`.
            let older = variant.map(|variant| format!("{file}.{variant}.index.json"));
            std::iter::once(newer)
                .chain(older)
                .map(|name| (name, true))
                .collect::<Vec<_>>()
        };
        let mut names = indices(DIFFUSERS_FILE);
        names.extend([single(DIFFUSERS_FILE), single(TRANSFORMERS_FILE)]);
        names.extend(indices(TRANSFORMERS_FILE));
        names
    };
    plain.iter().chain(&variants).flat_map(of).collect()
}

/// `name` with a variant before its last ending, as diffusers and transformers write it.
fn with_variant(name: &str, variant: Option<&str>) -> String {
    match (variant, name.rsplit_once('.')) {
        (Some(variant), Some((stem, end))) => format!("{stem}.{variant}.{end}"),
        _ => name.to_owned(),
    }
}

/// Why a folder has no weights that can be read.
fn absent(folder: &Path) -> String {
    let files = files_of(folder);
    let ending = |ends: &[&str]| -> Vec<&str> {
        let has_end = |name: &&String| ends.iter().any(|end| name.ends_with(&format!(".{end}")));
        files.iter().filter(has_end).map(String::as_str).collect()
    };
    let (others, quantised, pickles) = (
        ending(&["safetensors"]),
        ending(&["gguf"]),
        ending(&PICKLES),
    );
    let is_weights = |name: &&str| !NO_WEIGHTS.iter().any(|stem| name.starts_with(stem));
    let pickles: Vec<&str> = pickles.into_iter().filter(is_weights).collect();
    let missing = format!(
        "no weights: neither {DIFFUSERS_FILE} nor {TRANSFORMERS_FILE} (nor their .index.json) is there"
    );
    if let Some(broken) = files.iter().find(|name| is_broken_link(&folder.join(name))) {
        return format!(
            "{missing}; {broken} is a link to a file that is not there: download the model again"
        );
    }
    if !others.is_empty() {
        return format!(
            "{missing}; of such files, the folder has {}",
            others.join(", ")
        );
    }
    if !quantised.is_empty() {
        let names = quantised.join(", ");
        return format!(
            "{missing}, but {names}: GGUF is not read; {}",
            super::quantised::REMEDY
        );
    }
    match pickles.first() {
        None => missing,
        Some(first) => format!(
            "{missing}, but {}: pickles are not read, since they can run code; download the model's safetensors \
             files, or convert these, in the folder, with: {}",
            pickles.join(", "),
            conversion(first)
        ),
    }
}

/// Whether a link leads nowhere, as in a Hub cache whose blobs were deleted or are still being downloaded.
fn is_broken_link(path: &Path) -> bool {
    path.is_symlink() && !path.exists()
}

/// The names of a folder's files, sorted; none if it can't be read.
fn files_of(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A command that makes one safetensors file of a pickle, or of all shards if `pickle` is one of them.
fn conversion(pickle: &str) -> String {
    let (stem, end) = pickle.rsplit_once('.').unwrap_or((pickle, "bin"));
    // Shards are called pytorch_model-00001-of-00002.bin.
    let pattern = match stem.split_once("-0") {
        Some((stem, _)) => format!("{stem}-*.{end}"),
        None => pickle.to_owned(),
    };
    let file = match stem.starts_with("diffusion_pytorch_model") {
        true => DIFFUSERS_FILE,
        false => TRANSFORMERS_FILE,
    };
    // Copies, since tied weights share memory, which safetensors refuses to save.
    format!(
        "python3 -c \"import glob, torch; from safetensors.torch import save_file; t = {{}}; [t.update(s.get('state_dict', s)) \
         for s in (torch.load(f, map_location='cpu', weights_only=True) for f in sorted(glob.glob('{pattern}')))]; \
         save_file({{k: v.clone().contiguous() for k, v in t.items()}}, '{file}', {{'format': 'pt'}})\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with empty files of these names.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(folder.path().join(name), "").unwrap();
        }
        folder
    }

    fn found(names: &[&str]) -> String {
        let folder = folder(names);
        let path = match locate(folder.path()).unwrap() {
            Found::File(path) | Found::Index(path) => path,
        };
        path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn refused(names: &[&str]) -> String {
        locate(folder(names).path()).unwrap_err().to_string()
    }

    #[test]
    fn each_library_has_its_own_order() {
        let diffusers = [
            DIFFUSERS_FILE,
            "diffusion_pytorch_model.safetensors.index.json",
        ];
        assert_eq!(found(&diffusers), diffusers[1]);
        let transformers = [TRANSFORMERS_FILE, "model.safetensors.index.json"];
        assert_eq!(found(&transformers), transformers[0]);
    }

    #[test]
    fn variants_stand_in_for_plain_files_that_are_absent() {
        for name in [
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.bf16.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.safetensors.fp16.index.json",
            "model.fp16.safetensors",
            "model.safetensors.index.bf16.json",
        ] {
            assert_eq!(found(&[name]), name);
            let plain = if name.starts_with("model") {
                TRANSFORMERS_FILE
            } else {
                DIFFUSERS_FILE
            };
            assert_eq!(found(&[name, plain]), plain);
        }
        let both = ["model.fp16.safetensors", "model.bf16.safetensors"];
        assert_eq!(found(&both), both[1]);
    }

    #[test]
    fn what_is_there_instead_is_named() {
        let text = refused(&["flux1-kontext-dev.safetensors"]);
        assert!(
            text.ends_with("the folder has flux1-kontext-dev.safetensors"),
            "{text}"
        );
        let text = refused(&["flux1-kontext-dev-Q4_K_S.gguf"]);
        assert!(
            text.contains("flux1-kontext-dev-Q4_K_S.gguf: GGUF is not read"),
            "{text}"
        );
        let text = refused(&["config.json", "optimizer.bin"]);
        assert!(text.ends_with("is there"), "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_named() {
        let folder = folder(&["config.json"]);
        let link = folder.path().join(TRANSFORMERS_FILE);
        std::os::unix::fs::symlink(folder.path().join("blobs/0a"), link).unwrap();
        let text = locate(folder.path()).unwrap_err().to_string();
        assert!(
            text.contains("; model.safetensors is a link to a file that is not there"),
            "{text}"
        );
    }

    #[test]
    fn pickles_come_with_the_command_that_converts_them() {
        let text = refused(&["diffusion_pytorch_model.bin", "training_args.bin"]);
        assert!(
            text.contains("but diffusion_pytorch_model.bin: pickles are not read"),
            "{text}"
        );
        assert!(
            text.contains("glob.glob('diffusion_pytorch_model.bin')")
                && text.contains(&format!("'{DIFFUSERS_FILE}'")),
            "{text}"
        );
        let text = refused(&[
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
        ]);
        assert!(
            text.contains("glob.glob('pytorch_model-*.bin')")
                && text.contains(&format!("'{TRANSFORMERS_FILE}'")),
            "{text}"
        );
    }
}
