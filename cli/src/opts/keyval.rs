//! Splitting `a=b,c=d`: commas separate, a doubled comma is one comma of a value.

/// One `name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// What stands before `=`, or the whole word.
    pub(crate) name: String,
    /// What stands after it; `None` where there is no `=`.
    pub(crate) value: Option<String>,
}

/// Splits a list into its pairs. Only values can hold a (doubled) comma.
pub(crate) fn split(list: &str) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let end = rest.find([',', '=']).unwrap_or(rest.len());
        let (name, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let name = name.to_owned();
        if let Some(text) = after.strip_prefix('=') {
            let (value, left) = take_value(text);
            pairs.push(Pair {
                name,
                value: Some(value),
            });
            rest = left;
        } else {
            pairs.push(Pair { name, value: None });
            rest = after.strip_prefix(',').unwrap_or(after);
        }
    }
    pairs
}

/// A value with its doubled commas undone, and what follows the single comma that ends it.
fn take_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(comma) = rest.find(',') {
        let (before, after) = rest.split_at_checked(comma).unwrap_or((rest, ""));
        value.push_str(before);
        let after = after.strip_prefix(',').unwrap_or(after);
        match after.strip_prefix(',') {
            Some(left) => {
                value.push(',');
                rest = left;
            }
            None => return (value, after),
        }
    }
    value.push_str(rest);
    (value, "")
}

/// Whether the text of one `-o` can stand in a list: it isn't empty and neither begins nor
/// ends with a lone separator.
pub(crate) fn is_list(text: &str) -> bool {
    let trailing = text.len() - text.trim_end_matches(',').len();
    !text.is_empty() && !text.starts_with(',') && trailing.is_multiple_of(2)
}

/// Whether a list asks for help: one of its words is `help` or `?`.
pub(crate) fn asks_for_help(list: &str) -> bool {
    split(list)
        .iter()
        .any(|pair| pair.value.is_none() && (pair.name == "help" || pair.name == "?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &str) -> Vec<(String, Option<String>)> {
        split(list)
            .into_iter()
            .map(|pair| (pair.name, pair.value))
            .collect()
    }

    #[test]
    fn doubled_commas_belong_to_the_value() {
        let expected = vec![
            ("a".to_owned(), Some("x,y".to_owned())),
            ("b".to_owned(), None),
            ("c".to_owned(), Some("=,".to_owned())),
        ];
        assert_eq!(pairs("a=x,,y,b,c==,,"), expected);
        assert_eq!(pairs("a=x,,,b=1")[0].1.as_deref(), Some("x,"));
        assert_eq!(pairs("a=x,,,b=1")[1].1.as_deref(), Some("1"));
        assert_eq!(pairs("=x"), vec![(String::new(), Some("x".to_owned()))]);
        assert_eq!(
            pairs("é=€,,"),
            vec![("é".to_owned(), Some("€,".to_owned()))]
        );
    }

    #[test]
    fn what_is_no_list() {
        for text in ["", ",size=1M", "size=1M,", ",,", "a=,,,"] {
            assert!(!is_list(text), "{text}");
        }
        for text in ["a", "a=b", "a=b,,", "a=,,b"] {
            assert!(is_list(text), "{text}");
        }
    }

    #[test]
    fn help_is_a_word_of_its_own() {
        assert!(asks_for_help("help") && asks_for_help("a=b,?") && asks_for_help("foo,help"));
        assert!(!asks_for_help("foo=help") && !asks_for_help("compat=?") && !asks_for_help("list"));
    }
}
