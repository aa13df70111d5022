//! Snippets that trip naive scanners, with what must be found in them.

use super::*;

/// `expected` is the code with single spaces; the blanks themselves are checked by their number.
fn check_code(source: &str, expected: &str) {
    let masked = mask(source);
    let words: Vec<&str> = masked.code.split_whitespace().collect();
    assert_eq!(words.join(" "), expected, "code of {source:?}");
    assert_eq!(
        masked.code.chars().count(),
        source.chars().count(),
        "length of {source:?}"
    );
    assert_eq!(
        masked.comments.lines().count(),
        source.lines().count(),
        "lines of {source:?}"
    );
}

#[test]
fn literals_and_comments_are_no_code() {
    check_code("a // b", "a");
    check_code("a /* b /* c */ d */ e", "a e");
    check_code("a \"b // c\" d", "a d");
    check_code(r#"a "b \" c" d"#, "a d");
    check_code(r#"a "b \\" d"#, "a d");
    check_code("a r\"\\\" d", "a d");
    check_code("a r#\"b \" c\"# d", "a d");
    check_code("a br##\"b\"# c\"## d", "a d");
    check_code("a b\"{\" d", "a d");
    check_code("a c\"{\" d", "a d");
    check_code("a\n\"b\nc\"\nd", "a d");
}

#[test]
fn quotes_of_characters_and_lifetimes_differ() {
    check_code("x = '{';", "x = ;");
    check_code("x = b'{';", "x = ;");
    check_code(r"x = '\'';", "x = ;");
    check_code(r"x = '\u{7b}';", "x = ;");
    check_code("x = '\"'; y", "x = ; y");
    check_code("x = 'λ'; y", "x = ; y");
    check_code("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
    check_code("impl<'a, 'b> F<'a, 'b> {}", "impl<'a, 'b> F<'a, 'b> {}");
    check_code(
        "'outer: loop { break 'outer }",
        "'outer: loop { break 'outer }",
    );
}

#[test]
fn words_that_end_in_a_prefix_letter_are_words() {
    check_code("matcher \"x\"", "matcher");
    check_code("r#type + br + bar", "r#type + br + bar");
}

#[test]
fn comments_keep_their_text() {
    let masked = mask("a // b \"c\"\n\"// d\"");
    assert_eq!(masked.comments.trim_end(), "  // b \"c\"");
}

#[test]
fn an_unfinished_literal_reaches_the_end() {
    for source in ["\"abc", "r#\"abc\"", "/* abc", "'\\", "b\"\\"] {
        assert_eq!(mask(source).code.trim(), "", "{source:?}");
    }
}

fn check_functions(source: &str, expected: &[(&str, usize, usize)]) {
    let found = functions(&mask(source).code);
    let found: Vec<_> = found
        .iter()
        .map(|f| (f.name.as_str(), f.line, f.n_lines))
        .collect();
    assert_eq!(found, expected, "{source}");
}

#[test]
fn functions_are_measured_from_fn_to_brace() {
    check_functions("fn f() {}", &[("f", 1, 1)]);
    check_functions(
        "\npub const fn f(\n    x: [u8; 3],\n) -> u8 {\n    x[0]\n}\n",
        &[("f", 2, 5)],
    );
    check_functions(
        "fn f() { let x = \"}\"; }\nfn g() {\n}",
        &[("f", 1, 1), ("g", 2, 2)],
    );
    check_functions("fn f() {\n  // }\n  '}';\n}", &[("f", 1, 4)]);
    check_functions("fn f() {\n  fn g() {\n  }\n}", &[("f", 1, 4), ("g", 2, 2)]);
    check_functions(
        "fn f<T>() -> M<{ N + 1 }>\nwhere T: Fn() {\n}",
        &[("f", 1, 3)],
    );
    check_functions("fn r#type() {\n}", &[("r#type", 1, 2)]);
}

#[test]
fn what_has_no_body_is_no_function() {
    check_functions("trait T { fn f(&self); fn g() {} }", &[("g", 1, 1)]);
    check_functions("type F = fn(u8) -> u8;", &[]);
    check_functions("macro_rules! m { () => { fn $name() {} } }", &[]);
    check_functions("let fn_x = 1; // fn f() {}", &[]);
}

fn check_test_lines(source: &str, expected: &[bool]) {
    assert_eq!(test_lines(&mask(source).code), expected, "{source}");
}

#[test]
fn test_modules_and_test_items_are_found() {
    check_test_lines(
        "a\n#[cfg(test)]\nmod t {\n}\nb",
        &[false, true, true, true, false],
    );
    check_test_lines("a\n#[cfg(test)]\nmod t;\nb", &[false, true, true, false]);
    check_test_lines(
        "#[cfg(test)]\n#[path = \"x\"]\nmod t {}\nb",
        &[true, true, true, false],
    );
    check_test_lines(
        "#[cfg(all(test, unix))]\nuse a::{b, c};\nb",
        &[true, true, false],
    );
    check_test_lines("#[cfg(not(test))]\nmod a {}\n", &[false, false]);
    check_test_lines("// #[cfg(test)]\nmod a {}\n", &[false, false]);
    check_test_lines("#[cfg(test)]", &[true]);
}
