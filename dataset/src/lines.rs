//! Files of JSON lines, as editors of all systems save them.

use std::{fs, path::Path};

use rayon::prelude::*;
use serde::de::DeserializeOwned;

use crate::error::{DatasetError, Problems};

/// Windows editors begin a file with it.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// The mark in UTF-16, of either order: no line of such a file could be read.
const UTF_16_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Reads what `parse` makes of every line that is not blank, on all cores: it may look at files.
///
/// A byte order mark, `\r` before the line's end and white space after the object are no part of a line. Only `\n`
/// ends one: JSON strings may hold U+2028 and other separators as they are.
///
/// # Errors
/// If the file can't be read or is UTF-16; else all problems with its lines, numbered from 1, blank ones included.
pub fn read_lines<T: Send>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, String> + Sync,
) -> Result<Vec<T>, DatasetError> {
    let bytes = fs::read(path).map_err(|error| DatasetError::file(path, error.to_string()))?;
    if UTF_16_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        return Err(DatasetError::file(path, "UTF-16, expected UTF-8"));
    }
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let parse = |line: &&[u8]| match text(line)? {
        "" => Ok(None),
        line => parse(line).map(Some),
    };
    let parsed: Vec<Result<Option<T>, String>> = lines.par_iter().map(parse).collect();
    let mut items = Vec::with_capacity(lines.len());
    let mut problems = Problems::of(path);
    for (index, parsed) in parsed.into_iter().enumerate() {
        match parsed {
            Ok(item) => items.extend(item),
            Err(problem) => problems.push(index + 1, &problem),
        }
    }
    problems.into_result().map(|()| items)
}

/// The line's text; empty if it is blank.
fn text(line: &[u8]) -> Result<&str, String> {
    let text = str::from_utf8(line)
        .map_err(|error| format!("not UTF-8 at column {}", error.valid_up_to() + 1))?;
    // Not only in the first line: files that begin with a mark may have been put together.
    Ok(text
        .strip_prefix(BYTE_ORDER_MARK)
        .unwrap_or(text)
        .trim_end())
}

/// Parses a line's JSON.
///
/// # Errors
/// What is wrong, and at which byte of the line.
pub fn parse_json<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|error| {
        // The parser's own end says "line 1" of every line.
        let message = error.to_string();
        let end = format!(" at line {} column {}", error.line(), error.column());
        match message.strip_suffix(&end) {
            Some(problem) => format!("{problem} at column {}", error.column()),
            None => message,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file's strings, or the message without the folder.
    fn read(bytes: &[u8]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, bytes).unwrap();
        let prefix = format!("{}/", folder.path().display());
        read_lines(&path, parse_json).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn every_way_to_write_two_lines_is_read() {
        for bytes in [
            "\"a\"\n\"b\"\n",
            "\"a\"\n\"b\"",
            "\"a\"\r\n\"b\"\r\n",
            "\u{feff}\"a\"\n\"b\"\n",
            "\u{feff}\"a\"\r\n\u{feff}\"b\"\r\n",
            "\u{feff}\n\n\"a\"\n \t\r\n\u{a0}\n\"b\"\n\n\n",
            "  \"a\"  \n\t\"b\"\u{3000}\n",
        ] {
            assert_eq!(read(bytes.as_bytes()).unwrap(), ["a", "b"], "{bytes:?}");
        }
        assert_eq!(read(b"").unwrap(), [""; 0]);
        assert_eq!(read("\u{feff}\r\n".as_bytes()).unwrap(), [""; 0]);
    }

    #[test]
    fn only_a_line_feed_ends_a_line() {
        let text = "\"a\u{2028}b\u{2029}c\u{85}d\"\n";
        let read = read(text.as_bytes()).unwrap();
        assert_eq!(read, ["a\u{2028}b\u{2029}c\u{85}d"]);
    }

    #[test]
    fn problems_have_the_line_and_column_of_the_file() {
        let error = read(b"\n\"a\"\r\n\n\"b\xff\"\r\n7\n  oops\n\"c\n").unwrap_err();
        let expected = [
            "4 problems:",
            "  f:4: not UTF-8 at column 3",
            "  f:5: invalid type: integer `7`, expected a string at column 1",
            "  f:6: expected value at column 3",
            "  f:7: EOF while parsing a string at column 2",
        ];
        assert_eq!(error, expected.join("\n"));
    }

    #[test]
    fn utf_16_is_one_problem() {
        let text = "\u{feff}\"a\"\n\"b\"\n".encode_utf16();
        let little: Vec<u8> = text.clone().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.flat_map(u16::to_be_bytes).collect();
        for bytes in [little, big] {
            assert_eq!(read(&bytes).unwrap_err(), "f: UTF-16, expected UTF-8");
        }
    }

    #[test]
    fn what_is_no_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("missing")] {
            let error = read_lines(&path, parse_json::<String>).unwrap_err();
            let start = format!("{}: ", path.display());
            assert!(error.to_string().starts_with(&start), "{error}");
        }
    }
}
