//! A weighting as it is written on a command line: `p2:gamma=1,k=1`.

use p2_diffusion::Weighting;
use serde_json::{Map, Value};

use super::catalog::EXAMPLES;
use crate::config::nearest;
use crate::problem::Problem;

/// The weighting's kind, as written.
#[must_use]
pub fn kind(weighting: Weighting) -> String {
    match fields(weighting).remove("kind") {
        Some(Value::String(kind)) => kind,
        _ => String::new(),
    }
}

/// The weighting as it is written: its kind and its constants.
#[must_use]
pub fn text(weighting: Weighting) -> String {
    let constants: Vec<String> = fields(weighting)
        .iter()
        .filter(|(key, _)| *key != "kind")
        .map(|(key, value)| format!("{key}={}", value.as_f64().unwrap_or(f64::NAN)))
        .collect();
    match constants.as_slice() {
        [] => kind(weighting),
        constants => format!("{}:{}", kind(weighting), constants.join(",")),
    }
}

/// Reads a weighting that is written as `KIND` or `KIND:KEY=VALUE,…`.
///
/// # Errors
/// If the kind or a key is unknown, a key is missing, or a value is no number.
pub fn parse(text: &str) -> Result<Weighting, Problem> {
    let (kind, constants) = text.split_once(':').unwrap_or((text, ""));
    let example = example(kind, text)?;
    let mut expected = fields(example);
    expected.remove("kind");
    let mut given = Map::new();
    given.insert("kind".into(), kind.into());
    for assignment in constants.split(',').filter(|part| !part.is_empty()) {
        let (key, value) = assignment.split_once('=').ok_or_else(|| {
            Problem::new(format!("`{assignment}` in `{text}` is no KEY=VALUE"))
                .hint(format!("write it as in {}", self::text(example)))
        })?;
        if expected.remove(key).is_none() {
            let is_twice = given.contains_key(key);
            let what = if is_twice { "repeated" } else { "unknown" };
            let keys: Vec<&str> = expected.keys().map(String::as_str).collect();
            let hint = match nearest(key, &keys) {
                Some(nearest) if !is_twice => format!("did you mean `{nearest}`?"),
                _ => format!("write it as in {}", self::text(example)),
            };
            return Err(Problem::new(format!("{what} key `{key}` in `{text}`")).hint(hint));
        }
        let real = || {
            value
                .parse::<f64>()
                .ok()
                .and_then(serde_json::Number::from_f64)
        };
        // A count is read from a whole number alone.
        let whole = value.parse::<u64>().ok().map(serde_json::Number::from);
        let number = whole.or_else(real);
        let number = number.ok_or_else(|| {
            Problem::new(format!(
                "`{key}` in `{text}` is `{value}`, which is no finite number"
            ))
        })?;
        given.insert(key.into(), Value::Number(number));
    }
    if let Some(key) = expected.keys().next() {
        return Err(Problem::new(format!("missing key `{key}` in `{text}`"))
            .hint(format!("write it as in {}", self::text(example))));
    }
    serde_json::from_value(Value::Object(given))
        .map_err(|error| Problem::new(format!("`{text}` is no weighting")).caused_by(error))
}

/// The example of a kind, for its keys.
fn example(kind: &str, text: &str) -> Result<Weighting, Problem> {
    let found = EXAMPLES
        .into_iter()
        .find(|&example| self::kind(example) == kind);
    found.ok_or_else(|| {
        let kinds: Vec<String> = EXAMPLES.into_iter().map(self::kind).collect();
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        let hint = match nearest(kind, &kinds) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "`p2 weights list` shows all".to_owned(),
        };
        Problem::new(format!("unknown weighting `{kind}` in `{text}`")).hint(hint)
    })
}

fn fields(weighting: Weighting) -> Map<String, Value> {
    match serde_json::to_value(weighting) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{EXAMPLES, parse, text};

    #[test]
    fn what_is_written_is_read() {
        for example in EXAMPLES {
            assert_eq!(parse(&text(example)).unwrap(), example);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (written, message, hint) in [
            (
                "p2-scald:k=1",
                "unknown weighting `p2-scald` in `p2-scald:k=1`",
                "did you mean `p2-scaled`?",
            ),
            (
                "p2:k=1,gama=1",
                "unknown key `gama` in `p2:k=1,gama=1`",
                "did you mean `gamma`?",
            ),
            (
                "p2:k=1,bias=1",
                "unknown key `bias` in `p2:k=1,bias=1`",
                "write it as in p2:gamma=1,k=1",
            ),
            (
                "p2:k=1,k=2",
                "repeated key `k` in `p2:k=1,k=2`",
                "write it as in p2:gamma=1,k=1",
            ),
            (
                "p2:k=1",
                "missing key `gamma` in `p2:k=1`",
                "write it as in p2:gamma=1,k=1",
            ),
            (
                "edm:0.5",
                "`0.5` in `edm:0.5` is no KEY=VALUE",
                "write it as in edm:sigma_data=0.5",
            ),
        ] {
            let problem = parse(written).unwrap_err();
            assert_eq!(problem.to_string(), message);
            assert_eq!(problem.way_out(), Some(hint));
        }
        let problem = parse("min-snr:gamma=inf").unwrap_err();
        assert!(problem.to_string().contains("no finite number"));
    }
}
