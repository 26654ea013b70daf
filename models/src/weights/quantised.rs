//! Quantised weights, which are refused by the name of their scheme: what is trained and judged with is bf16, f16 or f32.

use serde_json::Value;

use super::Weights;

/// What to do about quantised weights.
pub(super) const REMEDY: &str =
    "download the model that they were quantised from, whose weights are bf16, f16 or f32";

/// Ends of tensor names that schemes add beside the weights, each with its scheme.
const MARKS: [(&str, &str); 11] = [
    (".SCB", "bitsandbytes, 8 bits"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".wscales", "SVDQuant"),
    ("._data", "quanto"),
    (".weight._scale", "quanto"),
    (".weight_scale", "fp8 or int8 with scales"),
    (".weight_scale_inv", "fp8 with scales"),
    (".scale_weight", "fp8 with scales"),
];

/// The scheme of a model's `config.json`, if it asks for one.
pub(super) fn scheme_of(config: &Value) -> Option<String> {
    let keys = ["quantization_config", "compression_config"];
    let settings = keys.iter().find_map(|key| config.get(key)?.as_object())?;
    let text = |key: &str| settings.get(key).and_then(Value::as_str);
    let method = ["quant_method", "quant_type", "quant_algo"]
        .iter()
        .find_map(|key| text(key))
        .unwrap_or("a method without a name");
    let is_set = |key: &str| settings.get(key).and_then(Value::as_bool) == Some(true);
    let bits = match settings.get("bits").and_then(Value::as_u64) {
        Some(bits) => Some(bits),
        None if is_set("load_in_4bit") || is_set("_load_in_4bit") => Some(4),
        None if is_set("load_in_8bit") || is_set("_load_in_8bit") => Some(8),
        None => None,
    };
    Some(bits.map_or(method.to_owned(), |bits| format!("{method}, {bits} bits")))
}

/// The scheme of weights, by their element types and by what is stored beside them.
pub(super) fn scheme_in(weights: &Weights) -> Option<&'static str> {
    let mut names = weights.names();
    names.find_map(|name| {
        let mark = MARKS.iter().find(|(end, _)| name.ends_with(end));
        let is_fp8 = || weights.dtype_name(name)?.starts_with("F8").then_some("fp8");
        mark.map(|(_, scheme)| *scheme).or_else(is_fp8)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn configurations_name_their_scheme() {
        let scheme = |settings: Value| scheme_of(&json!({"quantization_config": settings}));
        assert_eq!(
            scheme(json!({"quant_method": "awq", "bits": 4})).unwrap(),
            "awq, 4 bits"
        );
        assert_eq!(
            scheme(json!({"quant_method": "bitsandbytes", "load_in_4bit": true})).unwrap(),
            "bitsandbytes, 4 bits"
        );
        assert_eq!(
            scheme(json!({"quant_method": "bitsandbytes", "_load_in_8bit": true, "_load_in_4bit": false}))
                .unwrap(),
            "bitsandbytes, 8 bits"
        );
        assert_eq!(scheme(json!({"quant_method": "fp8"})).unwrap(), "fp8");
        assert_eq!(scheme(json!({})).unwrap(), "a method without a name");
        assert_eq!(scheme(Value::Null), None);
        assert_eq!(scheme_of(&json!({"hidden_size": 8})), None);
    }
}
