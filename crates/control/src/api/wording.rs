//! What is wrong with a value, in words of JSON instead of this program's own types.

/// How serde begins a complaint about a value.
const COMPLAINTS: [&str; 3] = ["invalid type: ", "invalid value: ", "invalid length "];

/// Rewords a message of serde: which kind of value was found and which one was expected. The field before and the place
/// behind them stay, and so does whatever is worded otherwise.
pub(super) fn in_json(message: &str) -> String {
    reworded(message).unwrap_or_else(|| message.to_owned())
}

fn reworded(message: &str) -> Option<String> {
    let (start, complaint) =
        COMPLAINTS.iter().filter_map(|complaint| Some((message.find(complaint)?, complaint))).min()?;
    let (before, after) = message.split_at(start + complaint.len());
    // What was found may quote the client's own text; what was expected comes last.
    let (found, rest) = after.rsplit_once(", expected ")?;
    let (expected, place) = rest.split_at(rest.rfind(" at line ").unwrap_or(rest.len()));
    let found = found_in_json(found);
    let expected = expected_in_json(expected, *complaint == "invalid value: ");
    Some(format!("{before}{found}, expected {expected}{place}"))
}

fn found_in_json(found: &str) -> String {
    match found {
        "sequence" => "an array".to_owned(),
        "map" => "an object".to_owned(),
        "unit value" => "null".to_owned(),
        _ => match found.split_once('`') {
            Some(("boolean ", value)) => format!("`{value}"),
            Some(("floating point ", value)) => format!("number `{value}"),
            _ => found.to_owned(),
        },
    }
}

/// `ranged` where a number was found, but not one that fits.
fn expected_in_json(expected: &str, ranged: bool) -> String {
    let kind = match expected {
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "str" | "string" | "a borrowed string" => "a string",
        "a sequence" => "an array",
        "a map" => "an object",
        "unit" => "null",
        // Of its parts, but never of its name, a person can know.
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("tuple ") || expected.starts_with("a tuple ") => "an array",
        _ if expected.starts_with("enum ") => "a string",
        _ => return integer(expected, ranged).unwrap_or_else(|| expected.to_owned()),
    };
    kind.to_owned()
}

fn integer(expected: &str, ranged: bool) -> Option<String> {
    let (least, most) = match expected {
        "i8" => (i8::MIN.to_string(), i8::MAX.to_string()),
        "i16" => (i16::MIN.to_string(), i16::MAX.to_string()),
        "i32" => (i32::MIN.to_string(), i32::MAX.to_string()),
        "i64" | "isize" => (i64::MIN.to_string(), i64::MAX.to_string()),
        "u8" => (u8::MIN.to_string(), u8::MAX.to_string()),
        "u16" => (u16::MIN.to_string(), u16::MAX.to_string()),
        "u32" => (u32::MIN.to_string(), u32::MAX.to_string()),
        "u64" | "usize" => (u64::MIN.to_string(), u64::MAX.to_string()),
        _ => return None,
    };
    Some(if ranged { format!("an integer from {least} to {most}") } else { "an integer".to_owned() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Sample {
        whole: Option<i64>,
        small: u8,
        part: f64,
        flag: bool,
        text: String,
        list: Vec<String>,
        map: BTreeMap<String, String>,
        inner: Option<Inner>,
        pair: (u8, u8),
        choice: Choice,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read from JSON")]
    struct Inner {
        x: u32,
        y: u32,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Choice {
        #[default]
        One,
    }

    fn refused(body: &str) -> String {
        in_json(&serde_json::from_str::<Sample>(body).unwrap_err().to_string())
    }

    #[test]
    fn every_kind_of_value_is_called_as_json_calls_it() {
        let cases = [
            (r#"{"whole": "two"}"#, "invalid type: string \"two\", expected an integer at line 1 column 15"),
            (r#"{"whole": 1.5}"#, "invalid type: number `1.5`, expected an integer at line 1 column 13"),
            (r#"{"small": -1}"#, "invalid value: integer `-1`, expected an integer from 0 to 255"),
            (r#"{"small": null}"#, "invalid type: null, expected an integer"),
            (r#"{"part": []}"#, "invalid type: an array, expected a number"),
            (r#"{"flag": 1}"#, "invalid type: integer `1`, expected true or false"),
            (r#"{"text": {}}"#, "invalid type: an object, expected a string"),
            (r#"{"list": "a"}"#, "invalid type: string \"a\", expected an array"),
            (r#"{"list": [true]}"#, "invalid type: `true`, expected a string"),
            (r#"{"map": []}"#, "invalid type: an array, expected an object"),
            (r#"{"inner": 1}"#, "invalid type: integer `1`, expected an object"),
            (r#"{"inner": [1]}"#, "invalid length 1, expected an object"),
            (r#"{"pair": 1}"#, "invalid type: integer `1`, expected an array"),
            (r#"{"choice": 1}"#, "expected"),
        ];
        for (body, told) in cases {
            let message = refused(body);
            assert!(message.starts_with(told), "{body}: {message}");
            for word in ["i64", "u8", "u32", "f64", "bool", "struct", "Inner", "Choice", "sequence", "map"] {
                assert!(!message.contains(word), "{body}: {message}");
            }
        }
    }

    #[test]
    fn the_field_in_front_and_the_clients_own_text_stay() {
        assert_eq!(
            in_json("a.b[0]: invalid type: string \", expected i64\", expected i64 at line 2 column 7"),
            "a.b[0]: invalid type: string \", expected i64\", expected an integer at line 2 column 7"
        );
        for untouched in ["missing field `cmd`", "expected value at line 1 column 2", "i64", ""] {
            assert_eq!(in_json(untouched), untouched);
        }
    }

    proptest! {
        #[test]
        fn any_message_is_reworded_without_a_panic(message in "(invalid (type|value|length)?:? ?)?\\PC{0,40}(, expected )?\\PC{0,20}") {
            in_json(&message);
        }
    }
}
