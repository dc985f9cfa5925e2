//! `$WRENN_DIR/env`: the credentials that `wrenn up` leaves for the machine's own users.
//!
//! The file is made to be sourced by a shell, so it is read by the shell's rules as far as such a file needs them:
//! `KEY=value` or `export KEY=value`, comments, blank lines, single and double quotes, backslashes. What a shell
//! would expand or execute is an error instead of a literal, lest the two readings differ.

use std::collections::BTreeMap;

/// A line that is not an assignment. Says where, never what: the file holds secrets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct EnvFileError {
    /// Line, counted from 1.
    line: usize,
    reason: &'static str,
}

/// The assignments of the file; the last of a name counts.
///
/// # Errors
/// [`EnvFileError`] for the first line that is not a plain assignment.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, EnvFileError> {
    let mut found = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let fail = |reason| EnvFileError { line: index + 1, reason };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (key, value) = line.split_once('=').ok_or_else(|| fail("expected KEY=value"))?;
        let named = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !named || key.is_empty() || key.as_bytes()[0].is_ascii_digit() {
            return Err(fail("a name holds letters, digits and underscores, and no space before the ="));
        }
        found.insert(key.to_owned(), unquote(value).map_err(fail)?);
    }
    Ok(found)
}

/// One shell word without expansions.
fn unquote(word: &str) -> Result<String, &'static str> {
    let mut out = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => single_quoted(&mut chars, &mut out)?,
            '"' => double_quoted(&mut chars, &mut out)?,
            '\\' => out.push(chars.next().ok_or("a backslash ends the line")?),
            '$' | '`' => return Err("expansions are not supported; quote the value with '…'"),
            ';' | '&' | '|' | '<' | '>' | '(' | ')' => return Err("the value needs quotes"),
            c if c.is_whitespace() => {
                let rest = chars.as_str().trim_start();
                return if rest.is_empty() || rest.starts_with('#') {
                    Ok(out)
                } else {
                    Err("a value with spaces needs quotes")
                };
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn single_quoted(chars: &mut std::str::Chars<'_>, out: &mut String) -> Result<(), &'static str> {
    loop {
        match chars.next().ok_or("a single quote is not closed")? {
            '\'' => return Ok(()),
            c => out.push(c),
        }
    }
}

fn double_quoted(chars: &mut std::str::Chars<'_>, out: &mut String) -> Result<(), &'static str> {
    const OPEN: &str = "a double quote is not closed";
    loop {
        match chars.next().ok_or(OPEN)? {
            '"' => return Ok(()),
            '$' | '`' => return Err("expansions are not supported; quote the value with '…'"),
            '\\' => match chars.next().ok_or(OPEN)? {
                c @ ('"' | '\\' | '$' | '`') => out.push(c),
                c => out.extend(['\\', c]),
            },
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn assignments_are_read_as_a_shell_reads_them() {
        let text = "# keys\n\nWRENN_API_KEY=wrn_1 # new\nexport A='b c'\"d\\\"$\"".replace('$', "")
            + "\nE=\nF=a\\ b\n";
        let found = parse(&text).unwrap();
        let expected = [("WRENN_API_KEY", "wrn_1"), ("A", "b cd\""), ("E", ""), ("F", "a b")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn what_is_not_an_assignment_is_refused_by_line_without_its_content() {
        for bad in
            ["KEY", "K EY=v", "1K=v", "=v", "K=a b", "K='x", "K=\"x", "K=$HOME", "K=`id`", "K=a;b", "K=\\"]
        {
            let error = parse(&format!("A=1\n{bad}\n")).unwrap_err();
            assert_eq!(error.line, 2, "{bad}");
            assert!(error.to_string().starts_with("line 2: "));
        }
    }

    proptest! {
        #[test]
        fn any_value_in_single_quotes_reads_back(value in "[^'\r\n]{0,40}") {
            let found = parse(&format!("K='{value}'\n")).unwrap();
            prop_assert_eq!(&found["K"], &value);
        }
    }
}
