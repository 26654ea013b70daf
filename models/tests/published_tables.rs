//! Our names and shapes at the published models' full sizes against the reference packages'
//! (tools/parity/tables, made on torch's meta device).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use retouch_models::autoencoder_kl::AutoencoderKl;
use retouch_models::autoencoder_kl_qwen_image::AutoencoderKlQwenImage;
use retouch_models::clip::ClipText;
use retouch_models::flux::FluxTransformer;
use retouch_models::inspect::inspect;
use retouch_models::qwen_image::QwenImageTransformer;
use retouch_models::qwen2_5_vl::Qwen2_5Vl;
use retouch_models::t5::T5Encoder;
use retouch_models::weights::{Pretrained, Table};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A file of tools/parity/tables.
#[derive(Deserialize)]
struct Published {
    component: String,
    config: Value,
    parameters: u64,
    tensors: usize,
    /// Names, those of alike layers folded: `blocks.{0..18}.bias`.
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Published {
    fn read(path: &Path) -> Self {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn unfolded(&self) -> BTreeMap<String, Vec<usize>> {
        let names = |(name, shape): (&String, &Vec<usize>)| -> Vec<_> {
            unfold(name)
                .into_iter()
                .map(|name| (name, shape.clone()))
                .collect()
        };
        self.shapes.iter().flat_map(names).collect()
    }

    fn ours(&self) -> Table {
        match self.component.as_str() {
            "flux_transformer" => FluxTransformer::table(&self.config()),
            "qwen_image_transformer" => QwenImageTransformer::table(&self.config()),
            "autoencoder_kl_qwen_image" => AutoencoderKlQwenImage::table(&self.config()),
            "autoencoder_kl" => AutoencoderKl::table(&self.config()),
            "clip_text" => ClipText::table(&self.config()),
            "t5_encoder" => T5Encoder::table(&self.config()),
            "qwen2_5_vl" => Qwen2_5Vl::table(&self.config()),
            other => panic!("no table for the component {other}"),
        }
    }

    fn config<C: DeserializeOwned>(&self) -> C {
        serde_json::from_value(self.config.clone()).unwrap()
    }
}

fn tables() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/tables")
}

fn unfold(name: &str) -> Vec<String> {
    let Some((head, rest)) = name.split_once('{') else {
        return vec![name.to_owned()];
    };
    let (range, tail) = rest.split_once('}').unwrap();
    let (first, last) = range.split_once("..").unwrap();
    let numbers = first.parse::<u64>().unwrap()..=last.parse().unwrap();
    numbers
        .map(|number| format!("{head}{number}{tail}"))
        .collect()
}

#[test]
fn our_tables_at_full_size_are_the_published_models() {
    let mut seen = 0;
    for entry in fs::read_dir(tables()).unwrap() {
        let path = entry.unwrap().path();
        let published = Published::read(&path);
        let expected = published.unfolded();
        assert_eq!(expected.len(), published.tensors, "{}", path.display());
        let ours = published.ours();
        let differing = ours
            .shapes()
            .iter()
            .filter(|(name, shape)| expected.get(*name) != Some(shape));
        let differing: Vec<_> = differing.take(5).collect();
        assert!(
            differing.is_empty(),
            "{}: only ours: {differing:?}",
            path.display()
        );
        assert_eq!(ours.shapes(), &expected, "{}", path.display());
        assert_eq!(
            ours.parameters(),
            published.parameters,
            "{}",
            path.display()
        );
        seen += 1;
    }
    assert!(seen >= 7, "only {seen} tables");
}

/// A weight file of the given bf16 tensors: its header, and as much room as they take, of which nothing is on the disk.
fn write_sparse(path: &Path, tensors: &[(&String, &Vec<usize>)]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).clone(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

/// A part of a pipeline at full size, its weights in three files with an index.
fn write_part(folder: &Path, table: &str, stem: &str) {
    fs::create_dir_all(folder).unwrap();
    let published = Published::read(&tables().join(format!("{table}.json")));
    fs::write(folder.join("config.json"), published.config.to_string()).unwrap();
    let shapes = published.unfolded();
    let shapes: Vec<_> = shapes.iter().collect();
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shapes.chunks(shapes.len().div_ceil(3)).enumerate() {
        let file = format!("{stem}-{:05}-of-00003.safetensors", index + 1);
        write_sparse(&folder.join(&file), shard);
        weight_map.extend(
            shard
                .iter()
                .map(|(name, _)| ((*name).clone(), file.clone())),
        );
    }
    let index = json!({"metadata": {}, "weight_map": weight_map});
    let path = folder.join(format!("{stem}.safetensors.index.json"));
    fs::write(path, index.to_string()).unwrap();
}

#[test]
fn the_check_of_a_full_size_pipeline_reads_headers_only() {
    let diffusers = "diffusion_pytorch_model";
    let parts = [
        ("transformer", "qwen-image-edit-2509_transformer", diffusers),
        ("vae", "qwen-image-edit-2509_vae", diffusers),
        ("text_encoder", "qwen2.5-vl-7b-instruct", "model"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let index = json!({"_class_name": "QwenImageEditPlusPipeline"});
    fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    for (name, table, stem) in parts {
        write_part(&folder.path().join(name), table, stem);
    }
    let inspection = inspect(folder.path()).unwrap();
    let models = inspection.components.iter();
    let models: Vec<_> = models.filter(|part| part.tensors.is_some()).collect();
    assert_eq!(models.len(), parts.len());
    for part in models {
        assert_eq!(part.problems, Vec::<String>::new(), "{}", part.name);
        let tensors = part.tensors.as_ref().unwrap();
        let stored = [("BF16".to_owned(), 2 * tensors.parameters)].into();
        assert_eq!(tensors.stored, stored, "{}", part.name);
    }
}
