//! The words of GRUB's scripts: quotes, escapes, variables, ends of commands.

use crate::boot::environment::Variables;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The value of a variable; outside quotes it is split at spaces.
    Variable {
        name: String,
        quoted: bool,
    },
}

/// A word as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    parts: Vec<Part>,
    /// It has quotes or escapes: no keyword, and not nothing when it is empty.
    quoted: bool,
}

/// A word, or the end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    End,
}

/// What ends a word and is none, or one of its own.
const SEPARATORS: &[char] = &[';', '|', '&', '{', '}'];
/// Bytes of a word after its variables have their values: variables that hold themselves twice would grow without end.
const MAX_WORD: usize = 16 << 10;

impl Word {
    /// The text, if it is one that can be a keyword.
    pub(super) fn keyword(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }

    /// What it stands for: no word, one, or several.
    pub(super) fn expand(&self, variables: &Variables) -> Vec<String> {
        let mut words = Vec::new();
        let mut current = self.quoted.then(String::new);
        for part in &self.parts {
            match part {
                Part::Text(text) => append(&mut current, text),
                Part::Variable { name, quoted } => {
                    let value = variables.get(name).map_or("", String::as_str);
                    if *quoted {
                        append(&mut current, value);
                    } else {
                        append_split(&mut words, &mut current, value);
                    }
                }
            }
        }
        words.extend(current);
        words
    }

    fn push(&mut self, letter: char) {
        match self.parts.last_mut() {
            Some(Part::Text(text)) => text.push(letter),
            _ => self.parts.push(Part::Text(letter.into())),
        }
    }
}

fn append(current: &mut Option<String>, text: &str) {
    let word = current.get_or_insert_default();
    let room = MAX_WORD.saturating_sub(word.len());
    word.push_str(&text[..text.floor_char_boundary(room)]);
}

/// Appends a value outside quotes: its spaces end words.
fn append_split(words: &mut Vec<String>, current: &mut Option<String>, value: &str) {
    for (number, piece) in value.split_ascii_whitespace().enumerate() {
        if number > 0 {
            words.extend(current.take());
        }
        append(current, piece);
    }
}

/// Takes a script apart. What has no end, as a quote, ends with the script.
pub(super) fn tokens(script: &str) -> Vec<Token> {
    let mut letters = script.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(&letter) = letters.peek() {
        match letter {
            '\n' | ';' | '|' | '&' => {
                letters.next();
                tokens.push(Token::End);
            }
            '{' | '}' => {
                letters.next();
                let mut brace = Word::default();
                brace.push(letter);
                tokens.push(Token::Word(brace));
            }
            '#' => while letters.next_if(|letter| *letter != '\n').is_some() {},
            letter if letter.is_whitespace() => {
                letters.next();
            }
            _ => tokens.push(Token::Word(word(&mut letters))),
        }
    }
    tokens
}

type Letters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn word(letters: &mut Letters<'_>) -> Word {
    let mut word = Word::default();
    while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace() && !SEPARATORS.contains(letter)) {
        match letter {
            '\'' => {
                word.quoted = true;
                letters
                    .by_ref()
                    .take_while(|letter| *letter != '\'')
                    .for_each(|letter| word.push(letter));
            }
            '"' => in_quotes(letters, &mut word),
            '\\' => {
                word.quoted = true;
                // A line goes on behind a backslash.
                letters
                    .next()
                    .filter(|letter| *letter != '\n')
                    .into_iter()
                    .for_each(|letter| word.push(letter));
            }
            '$' => variable(letters, &mut word, false),
            letter => word.push(letter),
        }
    }
    word
}

fn in_quotes(letters: &mut Letters<'_>, word: &mut Word) {
    word.quoted = true;
    while let Some(letter) = letters.next() {
        match letter {
            '"' => return,
            '\\' => match letters.next() {
                Some('\n') | None => {}
                Some(letter) => {
                    if !matches!(letter, '$' | '"' | '\\') {
                        word.push('\\');
                    }
                    word.push(letter);
                }
            },
            '$' => variable(letters, word, true),
            letter => word.push(letter),
        }
    }
}

/// The variable behind a dollar sign, or the sign itself.
fn variable(letters: &mut Letters<'_>, word: &mut Word, quoted: bool) {
    let in_name = |letter: &char| letter.is_alphanumeric() || *letter == '_';
    let mut name = String::new();
    if letters.next_if_eq(&'{').is_some() {
        name.extend(letters.by_ref().take_while(|letter| *letter != '}'));
    } else if let Some(letter) = letters.next_if(|letter| matches!(letter, '?' | '@' | '*' | '#')) {
        name.push(letter);
    } else {
        while let Some(letter) = letters.next_if(in_name) {
            name.push(letter);
        }
    }
    match name.is_empty() {
        true => word.push('$'),
        false => word.parts.push(Part::Variable { name, quoted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(script: &str) -> Vec<String> {
        let variables = [("a", "1"), ("two", "x y"), ("none", "")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let variables = Variables::from(variables);
        let words = tokens(script).into_iter().map(|token| match token {
            Token::Word(word) => word.expand(&variables),
            Token::End => vec![";".to_owned()],
        });
        words.flatten().collect()
    }

    #[test]
    fn words_are_those_of_a_shell() {
        assert_eq!(expanded("linux /k  a=b # c\nx"), ["linux", "/k", "a=b", ";", "x"]);
        assert_eq!(expanded("'a b'\"c d\"e\\ f"), ["a bc de f"]);
        assert_eq!(
            expanded("x$a ${a}y \"$two\" $two z$two"),
            ["x1", "1y", "x y", "x", "y", "zx", "y"]
        );
        assert_eq!(expanded("$none \"$none\" '' $unset $"), ["", "", "$"]);
        assert_eq!(expanded("\"a\\\"b\\$c\\d\" a\\\nb"), ["a\"b$c\\d", "ab"]);
        assert_eq!(expanded("x {a b}\"{\""), ["x", "{", "a", "b", "}", "{"]);
        assert_eq!(expanded("'never ended"), ["never ended"]);
        assert_eq!(expanded("\"never ended ${a"), ["never ended 1"]);
    }

    #[test]
    fn values_do_not_grow_without_end() {
        let long = Variables::from([("a".to_owned(), "x".repeat(MAX_WORD))]);
        let [Token::Word(word)] = &tokens("\"$a$a$a\"")[..] else {
            panic!("one word");
        };
        assert_eq!(word.expand(&long)[0].len(), MAX_WORD);
    }
}
