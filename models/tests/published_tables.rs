//! Our names and shapes at the published models' full sizes against the reference packages'
//! (tools/parity/tables, made on torch's meta device).

use std::collections::BTreeMap;
use std::path::Path;

use retouch_models::autoencoder_kl::AutoencoderKl;
use retouch_models::autoencoder_kl_qwen_image::AutoencoderKlQwenImage;
use retouch_models::clip::ClipText;
use retouch_models::flux::FluxTransformer;
use retouch_models::qwen_image::QwenImageTransformer;
use retouch_models::qwen2_5_vl::Qwen2_5Vl;
use retouch_models::t5::T5Encoder;
use retouch_models::weights::Table;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/parity/tables");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
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
