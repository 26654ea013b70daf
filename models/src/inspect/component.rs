use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::classes::{Class, class};
use crate::weights::{Table, Weights};

/// One part of a model folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Component {
    /// Its name in the folder, such as `transformer`.
    pub name: String,
    /// The class that the folder says it is.
    pub class: String,
    /// Its tensors, if it is a model whose configuration can be read.
    pub tensors: Option<Tensors>,
    /// What keeps it from being loaded, a sentence each.
    pub problems: Vec<String>,
}

/// The tensors of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Tensors {
    /// Number of tensors that the configuration implies.
    pub count: usize,
    /// Number of values in them.
    pub parameters: u64,
    /// Bytes in the weight files by element type, such as `BF16`.
    pub stored: BTreeMap<String, u64>,
}

impl Component {
    /// Looks at the part called `name`, whose files are in `folder`.
    pub(super) fn check(name: &str, class_name: &str, folder: &Path) -> Self {
        let mut component = Self {
            name: name.to_owned(),
            class: class_name.to_owned(),
            tensors: None,
            problems: Vec::new(),
        };
        match class(class_name) {
            None => component.problem(format!("{name}: the class {class_name} is not supported")),
            Some(Class::Other(load)) => {
                if let Err(problem) = load(folder) {
                    component.problem(problem);
                }
            }
            Some(Class::Model(_)) if !folder.is_dir() => component.problem(format!(
                "{}: there is no such folder, expected a model of class {class_name}",
                folder.display()
            )),
            Some(Class::Model(table)) => component.check_model(folder, table),
        }
        component
    }

    fn check_model(
        &mut self,
        folder: &Path,
        table: fn(&Path, Option<&Weights>) -> Result<Table, crate::weights::LoadError>,
    ) {
        let weights = Weights::from_folder(folder);
        let table = table(folder, weights.as_ref().ok());
        if let (Ok(weights), Ok(table)) = (&weights, &table) {
            let misfit = table.misfit(weights).lines();
            self.problems.extend(
                misfit
                    .into_iter()
                    .map(|line| format!("{}: {line}", folder.display())),
            );
        }
        if let Ok(table) = &table {
            self.tensors = Some(Tensors::of(table, weights.as_ref().ok()));
        }
        for error in [table.err(), weights.err()].into_iter().flatten() {
            self.problem(error.to_string());
        }
    }

    fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }
}

impl Tensors {
    fn of(table: &Table, weights: Option<&Weights>) -> Self {
        let mut stored = BTreeMap::new();
        if let Some(weights) = weights {
            for name in table.owned(weights) {
                let dtype = weights.dtype_name(name).unwrap_or_default();
                *stored.entry(dtype).or_default() += weights.byte_len(name).unwrap_or(0) as u64;
            }
        }
        Self {
            count: table.shapes().len(),
            parameters: table.parameters(),
            stored,
        }
    }
}
