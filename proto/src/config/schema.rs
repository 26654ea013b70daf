//! The run file's JSON schema, for editors and for people: the doc comments of the sections, and nothing beside them.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::{Devices, RunConfig};

/// One device as a run file names it; the same as [`DeviceName`](super::DeviceName) reads.
const DEVICE: &str = "^(cpu|wgpu|cuda(:[0-9]+)?)$";
const DEVICE_OR_ALL: &str = "^(cpu|wgpu|cuda(:[0-9]+|:\\*)?)$";

/// The JSON schema of run files: every field with its meaning, its default and, of choices, all names.
///
/// Draft 7 without references, which is what editors of TOML read (taplo, Even Better TOML).
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<RunConfig>();
    schema.insert("title".into(), "Retouch run file".into());
    schema.to_value()
}

impl JsonSchema for Devices {
    fn schema_name() -> Cow<'static, str> {
        "Devices".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "pattern": DEVICE_OR_ALL },
                { "type": "array", "items": { "type": "string", "pattern": DEVICE }, "minItems": 1 },
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use retouch_settings::DeviceName;

    use super::*;
    use crate::ids::RunId;

    /// What a schema finds wrong with a value, for the keywords that ours has; another one is a failure.
    fn problem(schema: &Value, value: &Value, path: &str) -> Option<String> {
        let wrong =
            |what: &dyn ToString| Some(format!("{path}: {value} is not {}", what.to_string()));
        let any = |schemas: &Value| {
            let mut schemas = schemas.as_array().expect("schemas").iter();
            schemas.any(|schema| problem(schema, value, path).is_none())
        };
        let schema = schema.as_object().expect("a schema");
        let empty = serde_json::Map::new();
        let fields = value.as_object().unwrap_or(&empty);
        schema
            .iter()
            .find_map(|(keyword, rule)| match keyword.as_str() {
                "$schema" | "title" | "description" | "default" | "format" => None,
                "type" if !is_of(rule, value) => wrong(rule),
                "type" => None,
                "const" => (rule != value).then(|| wrong(rule))?,
                "oneOf" | "anyOf" => (!any(rule)).then(|| wrong(rule))?,
                "minimum" => (value.as_f64() < rule.as_f64()).then(|| wrong(rule))?,
                "maximum" => (value.as_f64() > rule.as_f64()).then(|| wrong(rule))?,
                "minLength" | "maxLength" => None,
                "pattern" => (!matches(rule, value)).then(|| wrong(rule))?,
                "minItems" => value.as_array()?.is_empty().then(|| wrong(rule))?,
                "properties" => fields.iter().find_map(|(name, value)| {
                    problem(rule.get(name)?, value, &format!("{path}.{name}"))
                }),
                "additionalProperties" => {
                    let unknown = fields
                        .keys()
                        .find(|name| schema["properties"].get(name).is_none());
                    unknown.map(|name| format!("{path}.{name}: unknown"))
                }
                "items" => {
                    let mut items = value.as_array()?.iter();
                    items.find_map(|item| problem(rule, item, path))
                }
                other => panic!("the test does not know {other:?}"),
            })
    }

    fn is_of(kind: &Value, value: &Value) -> bool {
        match kind.as_str().expect("one type") {
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("the test does not know {other}"),
        }
    }

    /// A pattern stands for what the parser of its field takes.
    fn matches(pattern: &Value, value: &Value) -> bool {
        let text = value.as_str().unwrap_or_default();
        match pattern.as_str().expect("a pattern") {
            DEVICE => text.parse::<DeviceName>().is_ok(),
            DEVICE_OR_ALL => text.parse::<Devices>().is_ok(),
            _ => RunId::new(text).is_ok(),
        }
    }

    fn checked(toml: &str) -> Option<String> {
        let value: Value = toml::from_str(toml).expect("TOML");
        problem(&schema(), &value, "run")
    }

    #[test]
    fn every_example_and_preset_is_valid() {
        let examples = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples"));
        let files = std::fs::read_dir(examples).expect("examples");
        let files = files.map(|file| file.expect("a file").path());
        let run_files: Vec<_> = files
            .filter(|file| file.extension().is_some_and(|e| e == "toml"))
            .collect();
        assert!(run_files.len() >= 3, "{run_files:?}");
        for file in run_files {
            let text = std::fs::read_to_string(&file).expect("a run file");
            assert_eq!(checked(&text), None, "{}", file.display());
        }
        for preset in super::super::Preset::ALL {
            assert_eq!(checked(&super::super::preset(preset).to_toml()), None);
        }
        assert_eq!(
            checked("learner.device = [\"cuda:0\", \"cuda:1\"]\nmodel.device = \"cuda:*\"\n"),
            None
        );
    }

    #[test]
    fn what_a_run_file_refuses_is_refused() {
        for toml in [
            "sede = 1\n",
            "[rollout]\ngroup_sise = 4\n",
            "[[reward.terms]]\nwieght = 1.0\n",
            "rollout.solver = \"dpm3\"\n",
            "seed = \"one\"\n",
            "iterations = -1\n",
            "learner.device = \"gpu\"\n",
            "learner.device = []\n",
        ] {
            assert!(checked(toml).is_some(), "{toml}");
            assert!(RunConfig::from_toml(toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn fields_have_their_meaning_and_default_and_choices_their_names() {
        let schema = schema();
        let solver = &schema["properties"]["rollout"]["properties"]["solver"];
        assert_eq!(solver["description"], "The sampler.");
        assert_eq!(solver["default"], "dpm2");
        assert_eq!(solver["oneOf"].as_array().map(Vec::len), Some(4));
        assert_eq!(solver["oneOf"][0]["const"], "euler");
        assert!(!schema.to_string().contains("$ref"), "editors follow none");
    }
}
