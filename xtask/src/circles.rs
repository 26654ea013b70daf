//! Modules that import one another, directly or through others: whoever reads one has to read them all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Source folders whose modules must not import in circles, with the path that names each one in code.
const FOLDERS: [(&str, &str); 2] = [
    ("cli/src", "crate"),
    ("coordinator/src/machine", "crate::machine"),
];

/// What each module of a folder imports from its siblings.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// One line for each circle that is found.
pub(crate) fn problems(root: &Path, files: &[PathBuf]) -> std::io::Result<Vec<String>> {
    let mut problems = Vec::new();
    for (folder, name) in FOLDERS {
        let mut imports = Imports::new();
        for file in files {
            let Ok(inner) = file.strip_prefix(root.join(folder)) else {
                continue;
            };
            let depth = depth(inner);
            let module = module(inner);
            let text = std::fs::read_to_string(file)?;
            let found = imports.entry(module).or_default();
            for path in paths(shipped(&text)) {
                found.extend(sibling(&path, name, depth));
            }
        }
        let circle = find_circle(&imports);
        problems.extend(circle.map(|c| format!("{folder}: modules import in a circle: {c}")));
    }
    Ok(problems)
}

/// The file without its unit tests, which stand last.
fn shipped(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

/// The module right below the folder that a file belongs to.
fn module(inner: &Path) -> String {
    let first = inner.iter().next().unwrap_or_default().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// How many `super` lead from a file's module to that of the folder.
fn depth(inner: &Path) -> usize {
    let parts = inner.iter().count();
    if inner.ends_with("mod.rs") {
        parts - 1
    } else {
        parts
    }
}

/// The sibling that a path names: the first segment below the folder's module.
fn sibling(path: &str, folder: &str, depth: usize) -> Option<String> {
    let up = "super::".repeat(depth);
    let below = path.strip_prefix(&format!("{folder}::"));
    let below = below.or_else(|| path.strip_prefix(&up))?;
    let segment = below.split("::").next()?;
    Some(segment.to_owned())
}

/// Every path that begins with `crate` or `super`, with the groups of `use` written out.
fn paths(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line.trim(), "\n"])
        .collect();
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            // Inside a longer path: its head was or will be seen.
            if !code[..at].ends_with("::") {
                expand(String::new(), &code[at..], &mut found);
            }
        }
    }
    found
}

/// Reads one path, or the tree of them that a group makes; returns where it ends.
fn expand(prefix: String, tree: &str, found: &mut Vec<String>) -> usize {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let length = tree.find(|c| !is_path(c)).unwrap_or(tree.len());
    let path = prefix + &tree[..length];
    if !tree[length..].starts_with('{') || !path.ends_with("::") {
        found.push(path);
        return length;
    }
    let mut at = length + 1;
    while at < tree.len() && !tree[at..].starts_with('}') {
        let rest = &tree[at..];
        let separators = rest.len() - rest.trim_start_matches([',', '\n', ' ']).len();
        at += separators.max(usize::from(separators == 0 && !rest.starts_with(is_path)));
        if separators == 0 {
            at += expand(path.clone(), &tree[at..], found);
        }
    }
    at + 1
}

/// Some circle of imports, as `a -> b -> a`.
fn find_circle(imports: &Imports) -> Option<String> {
    imports
        .keys()
        .find_map(|start| walk(imports, start, &mut vec![start], &mut BTreeSet::new()))
}

fn walk<'a>(
    imports: &'a Imports,
    start: &str,
    way: &mut Vec<&'a str>,
    seen: &mut BTreeSet<&'a str>,
) -> Option<String> {
    let here = *way.last()?;
    for next in imports.get(here).into_iter().flatten() {
        if next == start && way.len() > 1 {
            return Some(format!("{} -> {start}", way.join(" -> ")));
        }
        if next != here && imports.contains_key(next) && seen.insert(next) {
            way.push(next);
            if let Some(circle) = walk(imports, start, way, seen) {
                return Some(circle);
            }
            way.pop();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_written_out() {
        let text = "use crate::{\n    exit::UsageError,\n    report::{self, Launch},\n};\nlet x = crate::show::duration(1);\n// crate::no\n";
        let found = paths(text);
        for path in [
            "crate::exit::UsageError",
            "crate::report::self",
            "crate::report::Launch",
            "crate::show::duration",
        ] {
            assert!(found.iter().any(|f| f == path), "{path} in {found:?}");
        }
        assert!(!found.iter().any(|path| path.contains("no")));
    }

    #[test]
    fn siblings_are_found_from_any_depth() {
        let own = |path: &str, depth| sibling(path, "crate::machine", depth);
        assert_eq!(own("crate::machine::io::Input", 1).as_deref(), Some("io"));
        assert_eq!(own("super::io::Input", 1).as_deref(), Some("io"));
        assert_eq!(own("super::super::io::Input", 2).as_deref(), Some("io"));
        assert_eq!(own("super::checks::Check", 2), None);
        assert_eq!(own("crate::store::Reader", 1), None);
        assert_eq!(
            (depth(Path::new("a.rs")), depth(Path::new("a/mod.rs"))),
            (1, 1)
        );
        assert_eq!(depth(Path::new("a/b.rs")), 2);
    }

    #[test]
    fn a_circle_is_found_through_others() {
        let imports = |pairs: &[(&str, &[&str])]| -> Imports {
            let owned = |names: &&[&str]| names.iter().map(|n| (*n).to_owned()).collect();
            pairs
                .iter()
                .map(|(m, names)| ((*m).to_owned(), owned(names)))
                .collect()
        };
        let straight = imports(&[("a", &["b", "a"]), ("b", &["c"]), ("c", &[])]);
        assert_eq!(find_circle(&straight), None);
        let round = imports(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
        assert_eq!(find_circle(&round).as_deref(), Some("b -> c -> b"));
    }
}
