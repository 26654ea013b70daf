use std::cell::Cell;

use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use super::*;
use crate::read;

/// As `datasets` saves a table with two image columns.
const SCHEMA: &str = "message schema {
    optional binary instruction (UTF8);
    optional int64 id;
    optional group source_image { optional binary bytes; optional binary path (UTF8); }
    optional group edited_image { optional binary bytes; optional binary path (UTF8); }
}";

/// A column of texts or bytes; `depth` is the definition level of a value.
fn column<'a>(values: &'a [Option<&'a [u8]>], depth: i16) -> (Vec<ByteArray>, Vec<i16>) {
    let levels = values
        .iter()
        .map(|value| if value.is_some() { depth } else { 0 });
    let values = values
        .iter()
        .flatten()
        .map(|value| ByteArray::from(value.to_vec()));
    (values.collect(), levels.collect())
}

/// An instruction, a source and a target.
type Given<'a> = (&'a str, Option<&'a [u8]>, Option<&'a [u8]>);

/// Writes a shard with these instructions, sources and targets.
fn shard(path: &Path, rows: &[Given<'_>]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let schema = parse_message_type(SCHEMA).unwrap().into();
    let properties = WriterProperties::builder().build().into();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let of = |pick: fn(&Given<'_>) -> Option<Vec<u8>>| rows.iter().map(pick).collect::<Vec<_>>();
    let prompts = of(|row| Some(row.0.as_bytes().to_vec()));
    let sources = of(|row| row.1.map(<[u8]>::to_vec));
    let targets = of(|row| row.2.map(<[u8]>::to_vec));
    let none = vec![None; rows.len()];
    let columns = [
        (&prompts, 1),
        (&none, 1),
        (&sources, 2),
        (&none, 2),
        (&targets, 2),
        (&none, 2),
    ];
    for (index, (values, depth)) in columns.into_iter().enumerate() {
        let mut writer = group.next_column().unwrap().unwrap();
        let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
        let (values, levels) = column(&values, depth);
        if index == 1 {
            let writer = writer.typed::<parquet::data_type::Int64Type>();
            writer.write_batch(&[], Some(&levels), None).unwrap();
        } else {
            let writer = writer.typed::<ByteArrayType>();
            writer.write_batch(&values, Some(&levels), None).unwrap();
        }
        writer.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

const A: &[u8] = b"\x89PNG a";
const B: &[u8] = b"\xff\xd8 b";

fn import<'a>(source: &'a Path, folder: &'a Path) -> Import<'a> {
    Import {
        source,
        folder,
        columns: Columns::default(),
        held_out: 1,
        skip_broken: false,
        check_image: &|bytes| match bytes.starts_with(b"broken") {
            true => Err("it is broken".to_owned()),
            false => Ok(()),
        },
        observe: &|| {},
    }
}

#[test]
fn shards_become_a_dataset_that_is_read() {
    let root = tempfile::tempdir().unwrap();
    let (source, folder) = (root.path().join("shards"), root.path().join("data"));
    shard(
        &source.join("data/train-00000-of-00002.parquet"),
        &[("p", Some(A), Some(B)), ("q", Some(B), None)],
    );
    shard(
        &source.join("data/train-00001-of-00002.parquet"),
        &[("r", Some(A), None)],
    );
    shard(
        &source.join("data/test-00000-of-00001.parquet"),
        &[("s", Some(B), Some(A))],
    );
    let seen = Cell::new(0);
    let imported = Import {
        observe: &|| seen.set(seen.get() + 1),
        ..import(&source, &folder)
    };
    let imported = imported.run().unwrap();
    let expected = Imported {
        train: 3,
        test: 1,
        skipped: 0,
    };
    assert_eq!((imported, seen.get()), (expected, 4));
    let rows = read(&folder, Split::Train).unwrap();
    let prompts: Vec<&str> = rows.iter().map(|row| row.prompt.as_str()).collect();
    assert_eq!(prompts, ["p", "q", "r"]);
    assert_eq!(rows[0].images, ["images/train_0000000.png"]);
    assert_eq!(rows[0].target.as_deref(), Some("targets/train_0000000.jpg"));
    assert_eq!(fs::read(folder.join(&rows[1].images[0])).unwrap(), B);
    assert_eq!(rows[1].target, None);
    assert_eq!(read(&folder, Split::Test).unwrap()[0].prompt, "s");
    let again = import(&source, &folder).run().unwrap_err().to_string();
    assert!(again.contains("it is there already"), "{again}");
}

#[test]
fn rows_are_held_out_where_no_shard_is_and_columns_may_be_several_sources() {
    let root = tempfile::tempdir().unwrap();
    let (source, folder) = (root.path().join("0000.parquet"), root.path().join("data"));
    shard(&source, &[("p", Some(A), Some(B)), ("q", Some(B), Some(A))]);
    let import = Import {
        columns: Columns {
            images: vec!["edited_image".into(), "source_image".into()],
            target: Some("source_image".into()),
            ..Columns::default()
        },
        ..import(&source, &folder)
    };
    // A column is one thing: what is a target is no source.
    assert!(
        import
            .run()
            .unwrap_err()
            .to_string()
            .contains("source_image is named twice")
    );
    let import = Import {
        columns: Columns {
            images: vec!["edited_image".into(), "source_image".into()],
            ..Columns::default()
        },
        ..import
    };
    assert_eq!(import.run().unwrap().test, 1);
    let held_out = &read(&folder, Split::Test).unwrap()[0];
    assert_eq!(held_out.prompt, "p");
    let sources = ["images/test_0000000.jpg", "images/test_0000000_1.png"];
    assert_eq!(held_out.images, sources);
    assert_eq!(fs::read(folder.join(sources[0])).unwrap(), B);
}

#[test]
fn rows_that_cannot_be_used_are_told_together_or_left_out() {
    let root = tempfile::tempdir().unwrap();
    let (source, folder) = (root.path().join("train.parquet"), root.path().join("data"));
    let rows = [
        ("p", Some(&b"broken"[..]), None),
        (" ", Some(A), None),
        ("q", None, None),
        ("r", Some(A), None),
    ];
    shard(&source, &rows);
    let refused = import(&source, &folder);
    let error = refused
        .run()
        .unwrap_err()
        .to_string()
        .replace(&*root.path().to_string_lossy(), "");
    let expected = [
        "3 problems:",
        "  /train.parquet:1: source_image: it is broken",
        "  /train.parquet:2: prompt is empty",
        "  /train.parquet:3: image names 0 files, expected 1 to 8",
    ];
    assert_eq!(error, expected.join("\n"));
    assert!(!folder.exists() && !root.path().join("data.partial").exists());
    let imported = Import {
        skip_broken: true,
        held_out: 0,
        ..refused
    };
    let expected = Imported {
        train: 1,
        test: 0,
        skipped: 3,
    };
    assert_eq!(imported.run().unwrap(), expected);
}

#[test]
fn what_is_no_shard_is_named() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("data");
    let refused = |source: &Path| import(source, &folder).run().unwrap_err().to_string();
    assert!(refused(root.path()).contains("no parquet file is there"));
    let pointer = root.path().join("train.parquet");
    fs::write(&pointer, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(refused(&pointer).contains("train.parquet: "));
    assert!(refused(&root.path().join("gone")).contains("No such file"));
}
