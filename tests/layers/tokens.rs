//! Splits Rust source into tokens, and leaves out comments, the contents of literals and what is
//! under `#[cfg(test)]`.

/// The tokens of `source`: names, numbers, `::`, and all other punctuation by single characters. A
/// string literal becomes `""`; lifetimes and character literals are dropped.
pub(crate) fn tokens(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let mut found = Vec::new();
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            '/' if at(i + 1) == '/' => {
                while i < text.len() && text[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => i = after_comment(&text, i),
            '"' => {
                i += 1;
                while i < text.len() && text[i] != '"' {
                    i += if text[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
                found.push("\"\"".to_owned());
            }
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < text.len() && text[i] != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            // A lifetime.
            '\'' => i += 1 + word(&text[i + 1..]).len(),
            ':' if at(i + 1) == ':' => {
                found.push("::".to_owned());
                i += 2;
            }
            c if is_part_of_a_word(c) => {
                let name = word(&text[i..]);
                let hashes = text[i + name.len()..].iter().take_while(|c| **c == '#').count();
                let raw = matches!(name.as_str(), "r" | "br" | "cr");
                if raw && at(i + name.len() + hashes) == '"' {
                    i = after_raw_string(&text, i + name.len() + hashes + 1, hashes);
                    found.push("\"\"".to_owned());
                } else {
                    i += name.len();
                    found.push(name);
                }
            }
            c => {
                if !c.is_whitespace() {
                    found.push(c.to_string());
                }
                i += 1;
            }
        }
    }
    found
}

fn is_part_of_a_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn word(text: &[char]) -> String {
    text.iter().take_while(|c| is_part_of_a_word(**c)).collect()
}

fn after_comment(text: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < text.len() {
        match (text[i], text.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn after_raw_string(text: &[char], start: usize, hashes: usize) -> usize {
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let length = text[start..].windows(end.len()).position(|window| window == end.as_slice());
    length.map_or(text.len(), |length| start + length + end.len())
}

/// `tokens` without the items under `#[cfg(test)]`, and the names of the modules that are declared
/// there with `mod x;`.
pub(crate) fn without_tests(tokens: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut i = 0;
    while i < tokens.len() {
        if starts_with(&tokens[i..], &["#", "[", "cfg", "(", "test", ")", "]"]) {
            let end = after_item(tokens, i);
            if let [.., keyword, name, semicolon] = &tokens[i..end]
                && keyword == "mod"
                && semicolon == ";"
            {
                modules.push(name.clone());
            }
            i = end;
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    (kept, modules)
}

fn starts_with(tokens: &[String], prefix: &[&str]) -> bool {
    tokens.len() >= prefix.len() && tokens.iter().zip(prefix).all(|(token, p)| token == p)
}

/// The index after the item at `start`, which ends with a `;` or a block outside of all brackets.
fn after_item(tokens: &[String], start: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(start) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && (token == ";" || token == "}") {
            return i + 1;
        }
    }
    tokens.len()
}

/// The index of the bracket that closes the one at `open`.
pub(crate) fn closing(tokens: &[String], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    tokens.len()
}

#[test]
fn comments_and_literals_are_not_code() {
    for source in [
        "// crate::daemon",
        "/* crate::daemon /* crate::cli */ crate::local */",
        "\"crate::daemon \\\" crate::cli\"",
        "r#\"crate::daemon \" crate::cli\"#",
        "br\"crate::daemon\"",
        "'\\n' '\"' 'c'",
    ] {
        assert!(tokens(source).iter().all(|token| token == "\"\""), "{source}");
    }
    let after = "'\"'; \"\\n\"; f::<'a>(r)";
    assert_eq!(tokens(after), [";", "\"\"", ";", "f", "::", "<", ">", "(", "r", ")"]);
}

#[test]
fn code_of_tests_is_left_out() {
    let source = "use a::b;
        #[cfg(test)] use c::{d, e};
        #[cfg(test)] #[path = \"f_tests.rs\"] mod f;
        #[cfg(test)] pub(crate) fn g<A, B>(h: [u8; 2]) -> i { j() }
        #[cfg(test)] mod k { use super::*; }
        fn l() {}";
    let (kept, modules) = without_tests(&tokens(source));
    assert_eq!(kept.concat(), "usea::b;;fnl(){}");
    assert_eq!(modules, ["f"]);
}
