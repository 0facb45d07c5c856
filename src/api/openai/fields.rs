//! Reading a request's body. Clients send some forty fields, and more each year: a field that is unknown is ignored, one that
//! is null is not there, and one that is known has to be of its type, or the error names it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ApiError;

/// A request's fields.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::invalid("the request has to be a JSON object")),
            Err(error) => Err(ApiError::invalid(format!("the request is no JSON: {error}"))),
        }
    }

    /// A field's value, unless it is null.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A value that `read` makes of a field, or an error that says what was expected.
    fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| ApiError::field(name, format!("{name} has to be {expected}")))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.read(name, "a string", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", |value| value.as_bool())
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.read(name, "an object", |value| match value {
            Value::Object(object) => Some(object),
            _ => None,
        })
    }

    pub(super) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.read(name, "an array", |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }

    /// A number within bounds.
    #[expect(clippy::cast_possible_truncation, reason = "settings of a draw are of f32, and their bounds are small")]
    pub(super) fn number(&mut self, name: &str, within: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let expected = format!("a number within {}..={}", within.start(), within.end());
        self.read(name, &expected, |value| value.as_f64().filter(|n| within.contains(n)).map(|n| n as f32))
    }

    /// A whole number within bounds.
    pub(super) fn whole(&mut self, name: &str, within: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let expected = match *within.end() {
            u32::MAX => format!("a whole number of at least {}", within.start()),
            end => format!("a whole number within {}..={end}", within.start()),
        };
        self.read(name, &expected, |value| {
            let number = value.as_u64()?;
            // Clients that want no limit ask for more than there can be.
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            within.contains(&number).then_some(number)
        })
    }

    /// A seed: any whole number.
    pub(super) fn seed(&mut self) -> Result<Option<u64>, ApiError> {
        self.read("seed", "a whole number", |value| value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)))
    }

    /// One string, or an array of some.
    pub(super) fn texts(&mut self, name: &str, most: usize) -> Result<Vec<String>, ApiError> {
        let texts = self.read(name, &format!("a string, or an array of at most {most} strings"), |value| match value {
            Value::String(text) => Some(vec![text]),
            Value::Array(all) if all.len() <= most => {
                all.into_iter().map(|text| text.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        });
        Ok(texts?.unwrap_or_default())
    }

    /// The field that every request has.
    pub(super) fn model(&mut self) -> Result<String, ApiError> {
        let missing = || ApiError::field("model", "model has to name a model").with_code("missing_required_parameter");
        self.text("model")?.filter(|model| !model.is_empty()).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let body =
            br#"{"model":"demo","temperature":3,"n":1.5,"stop":["a",1],"stream":"yes","top_p":null,"new":{"a":1}}"#;
        let mut fields = Fields::parse(body).unwrap();
        assert_eq!(fields.model().unwrap(), "demo");
        let param = |error: ApiError| error.to_json()["param"].as_str().unwrap().to_owned();
        assert_eq!(param(fields.number("temperature", 0.0..=2.0).unwrap_err()), "temperature");
        assert_eq!(param(fields.whole("n", 1..=8).unwrap_err()), "n");
        assert_eq!(param(fields.texts("stop", 4).unwrap_err()), "stop");
        assert_eq!(param(fields.flag("stream").unwrap_err()), "stream");
        assert_eq!(fields.number("top_p", 0.0..=1.0).unwrap(), None);
        assert_eq!(fields.seed().unwrap(), None);
        assert_eq!(param(fields.model().unwrap_err()), "model");
        for body in ["", "[]", "3", "{", "{\"a\":}", "\u{0}"] {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body:?}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
