//! `tools/gpu/bounds.toml`: how much programs may ask of the driver, beside what they asked when it was written.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail, ensure};

use super::double::Counts;

const FILE: &str = "tools/gpu/bounds.toml";
const MIB: u64 = 1 << 20;

type Measure = (&'static str, fn(&Counts) -> u64);

/// What is bounded of a program, by its name in the file.
const MEASURES: [Measure; 4] = [
    ("launches", |counts| counts.launches),
    ("syncs", |counts| counts.syncs),
    ("copies_to_host", |counts| counts.device_to_host),
    ("card_mib_peak", |counts| {
        counts.card_bytes_peak.div_ceil(MIB)
    }),
];

const HEAD: &str = "\
# How much programs may ask of the driver, by `cargo xtask gpu double --check`, beside what they asked when this was
# written by `cargo xtask gpu double --bounds`. Raise a bound where a change is meant to cost more.
";

/// What a program counted.
pub(crate) struct Measured {
    pub(crate) program: &'static str,
    pub(crate) counts: Counts,
    pub(crate) repeats: bool,
}

impl Measured {
    /// What is no regression yet, in hundredths: programs that share work as it comes have more of it.
    fn slack(&self) -> u64 {
        if self.repeats { 3 } else { 20 }
    }
}

/// Writes the file anew.
pub(crate) fn write(root: &Path, programs: &[Measured]) -> anyhow::Result<()> {
    let mut text = String::from(HEAD);
    for program in programs {
        text.push_str(&format!("\n[{}]\n", program.program));
        for (measure, of) in MEASURES {
            let measured = of(&program.counts);
            let most = measured + (measured * program.slack()).div_ceil(100);
            text.push_str(&format!(
                "{measure} = {{ measured = {measured}, max = {most} }}\n"
            ));
        }
    }
    Ok(std::fs::write(root.join(FILE), text)?)
}

/// Bounds by program and measure.
pub(crate) struct Bounds(BTreeMap<String, BTreeMap<String, u64>>);

impl Bounds {
    pub(crate) fn read(root: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(root.join(FILE)).context(FILE)?;
        Self::parse(&text).context(FILE)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse()?;
        let mut programs = BTreeMap::new();
        for (program, bounds) in table {
            let bounds = bounds
                .as_table()
                .with_context(|| format!("[{program}] is no table"))?;
            let mut by_measure = BTreeMap::new();
            for (measure, bound) in bounds {
                let known = MEASURES.iter().any(|(name, _)| name == measure);
                ensure!(
                    known,
                    "{program}.{measure} is none of {}",
                    MEASURES.map(|(name, _)| name).join(", ")
                );
                let most = bound.get("max").and_then(toml::Value::as_integer);
                let most = most.and_then(|most| u64::try_from(most).ok());
                let most = most.with_context(|| format!("{program}.{measure} has no max"))?;
                by_measure.insert(measure.clone(), most);
            }
            programs.insert(program, by_measure);
        }
        Ok(Self(programs))
    }

    /// Prints each measure beside its bound.
    ///
    /// # Errors
    /// If one is over it, or has none.
    pub(crate) fn check(&self, program: &str, counts: &Counts) -> anyhow::Result<()> {
        let bounds = self.0.get(program);
        let bounds = bounds.with_context(|| format!("{FILE} has no [{program}]"))?;
        let mut over = Vec::new();
        for (measure, of) in MEASURES {
            let most = *bounds
                .get(measure)
                .with_context(|| format!("{FILE} has no {program}.{measure}"))?;
            let value = of(counts);
            println!("  {measure:<16} {value:>9} of at most {most:>9}");
            if value > most {
                over.push(format!("{measure} {value} > {most}"));
            }
        }
        if !over.is_empty() {
            bail!(
                "{program}: {}; where that is meant, raise {FILE}",
                over.join(", ")
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
[edit]
launches = { measured = 100, max = 110 }
syncs = { measured = 3, max = 3 }
copies_to_host = { measured = 1, max = 2 }
card_mib_peak = { measured = 1000, max = 1050 }
";

    #[test]
    fn what_is_over_a_bound_is_named() {
        let bounds = Bounds::parse(TEXT).expect("it is right");
        let mut counts = Counts {
            launches: 110,
            syncs: 3,
            card_bytes_peak: 1050 * MIB,
            ..Counts::default()
        };
        bounds.check("edit", &counts).expect("all are within");
        counts.launches = 111;
        counts.card_bytes_peak += 1;
        let error = bounds
            .check("edit", &counts)
            .expect_err("two are over")
            .to_string();
        assert!(
            error.contains("launches 111 > 110, card_mib_peak 1051 > 1050"),
            "{error}"
        );
        assert!(bounds.check("smoke", &counts).is_err());
    }

    #[test]
    fn unknown_measures_and_missing_bounds_are_errors() {
        for (text, part) in [
            (
                "[edit]\nlaunchs = { max = 1 }",
                "edit.launchs is none of launches",
            ),
            (
                "[edit]\nlaunches = { measured = 1 }",
                "edit.launches has no max",
            ),
            ("edit = 1", "[edit] is no table"),
        ] {
            let error = Bounds::parse(text).err().expect(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
