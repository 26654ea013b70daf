//! Loading takes little more memory than the weights themselves. Alone in its process, so that nothing else counts.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use burn::tensor::{DType, Device};
use retouch_models::t5::{T5Config, T5Encoder};
use retouch_models::weights::{Pretrained, Table};
use serde_json::json;

const MIB: f64 = (1 << 20) as f64;

/// About 100 M parameters: 200 MB in bf16.
fn large() -> T5Config {
    T5Config {
        vocab_size: 32128,
        d_model: 768,
        d_kv: 64,
        d_ff: 2048,
        num_layers: 11,
        num_heads: 12,
        ..Default::default()
    }
}

fn small() -> T5Config {
    T5Config {
        vocab_size: 100,
        num_layers: 1,
        ..large()
    }
}

/// Three shards of zeros with their index, written without holding any tensor: the files are sparse.
fn write_shards(folder: &Path, config: &T5Config, table: &Table) {
    let names: Vec<&String> = table.shapes().keys().collect();
    let mut weight_map = serde_json::Map::new();
    for (shard, names) in names.chunks(names.len().div_ceil(3)).enumerate() {
        let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
        let (mut header, mut offset) = (serde_json::Map::new(), 0);
        for name in names {
            let shape = &table.shapes()[*name];
            let end = offset + 2 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]});
            header.insert((*name).clone(), entry);
            weight_map.insert((*name).clone(), file.clone().into());
            offset = end;
        }
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = File::create(folder.join(&file)).unwrap();
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(&header).unwrap();
        out.set_len((8 + header.len() + offset) as u64).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    fs::write(
        folder.join("config.json"),
        serde_json::to_string(config).unwrap(),
    )
    .unwrap();
}

/// A line of this process's status in bytes: `VmRSS` is what it has, `VmHWM` the most that it had.
fn status(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: f64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024.0
}

/// The most memory that `work` took beyond what was there before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, f64) {
    // Writing 5 here starts the peak anew.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let value = work();
    (value, status("VmHWM") - before)
}

#[test]
fn loading_peaks_below_a_tenth_more_than_the_weights() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let tables = [small(), large()].map(|config| (T5Encoder::table(&config), config));
    for (folder, (table, config)) in folders.iter().zip(&tables) {
        write_shards(folder.path(), config, table);
    }
    // The program's own pages come into memory as it runs for the first time: that is not loading.
    T5Encoder::load_as(folders[0].path(), &Device::flex(), DType::BF16).unwrap();
    let (folder, (table, _)) = (&folders[1], &tables[1]);
    // Both stay: freed memory that is used again would not count.
    let mut models = Vec::new();
    for (dtype, size) in [(DType::BF16, 2.0), (DType::F32, 4.0)] {
        let load = || T5Encoder::load_as(folder.path(), &Device::flex(), dtype).unwrap();
        let (model, peak) = peak(load);
        let weights = table.parameters() as f64 * size;
        println!(
            "{dtype:?}: weights {:.1} MiB, peak {:.1} MiB, {:.3} x",
            weights / MIB,
            peak / MIB,
            peak / weights
        );
        assert!(peak < 1.1 * weights, "{dtype:?}: peak {peak} of {weights}");
        // A peak below the weights would mean that they were not loaded, or not counted.
        assert!(peak > 0.9 * weights, "{dtype:?}: peak {peak} of {weights}");
        models.push(model);
    }
}
