//! GRUB's scripts as far as menus need them: variables, conditions, entries. There are no loops, so a script ends.

use super::condition::{self, Host};
use super::words::{Token, Word, tokens};
use crate::boot::Entry;
use crate::boot::environment::Variables;

/// Commands in each other.
const MAX_DEPTH: u32 = 32;
/// Bytes of all variables.
const MAX_VARIABLES: usize = 16 << 10;
/// Bytes of a command after its variables have their values; what is beyond is left out.
const MAX_COMMAND: usize = 64 << 10;
/// Where entries are set apart in a default: `submenu>entry`.
const PATH_SEPARATOR: char = '>';

/// An entry of a menu, or a menu in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    id: Option<String>,
    pub(super) entry: Entry,
    below: Vec<Item>,
}

/// What a script leaves behind.
#[derive(Debug, Default)]
pub(super) struct Menu {
    pub(super) items: Vec<Item>,
    /// What it says is the default.
    pub(super) default: String,
}

impl Menu {
    /// The entry that starts by itself: the default where it is one that starts Linux. GRUB takes the first where there is
    /// no such entry.
    pub(super) fn chosen(&self) -> Option<&Entry> {
        let item = select(&self.items, &self.default).or(self.items.first())?;
        first_linux(std::slice::from_ref(item)).or_else(|| first_linux(&self.items))
    }
}

/// The item that a default names: by its position, its title or its id, menu by menu.
fn select<'a>(items: &'a [Item], path: &str) -> Option<&'a Item> {
    let named = |name: &str| {
        let by_name = |item: &&Item| item.entry.title == name || item.id.as_deref() == Some(name);
        items
            .iter()
            .find(by_name)
            .or_else(|| items.get(name.parse::<usize>().ok()?))
    };
    // A title may have the separator in it.
    named(path).or_else(|| {
        let (first, rest) = path.split_once(PATH_SEPARATOR)?;
        let item = named(first)?;
        select(&item.below, rest).or(Some(item))
    })
}

fn first_linux(items: &[Item]) -> Option<&Entry> {
    items.iter().find_map(|item| match item.entry.kernel.is_empty() {
        false => Some(&item.entry),
        true => first_linux(&item.below),
    })
}

/// Runs a script. `kept` are the variables of GRUB's environment block, if there is one.
pub(super) fn run(script: &str, kept: Option<Variables>) -> Menu {
    let mut run = Run {
        tokens: tokens(script),
        at: 0,
        depth: 0,
        variables: Variables::new(),
        kept,
        status: true,
        menu: Vec::new(),
        entry: Entry::default(),
    };
    // A word that ends nothing here is passed over.
    while run.at < run.tokens.len() {
        run.block(&[], true);
        run.at += 1;
    }
    Menu {
        items: run.menu,
        default: run.variables.remove("default").unwrap_or_default(),
    }
}

struct Run {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
    variables: Variables,
    kept: Option<Variables>,
    /// Whether the last command succeeded.
    status: bool,
    /// The menu that entries are added to.
    menu: Vec<Item>,
    /// The entry that is being read.
    entry: Entry,
}

impl Host for Run {
    fn has_environment(&self) -> bool {
        self.kept.is_some()
    }
}

/// Words that end a part of a command.
const ENDS: &[&str] = &["then", "elif", "else", "fi", "do", "done", "}"];

impl Run {
    /// Runs commands up to one of these words, and stands on it; on another word of the kind where there is none. Commands
    /// that are not `active` are passed over.
    fn block(&mut self, ends: &[&str], active: bool) {
        self.depth += 1;
        while let Some(token) = self.tokens.get(self.at) {
            let keyword = match token {
                Token::End => None,
                Token::Word(word) => Some(word.keyword().unwrap_or_default().to_owned()),
            };
            match keyword.as_deref() {
                None => self.at += 1,
                Some(word) if ends.contains(&word) || ENDS.contains(&word) => break,
                // So deep is no menu of anybody: what is left of it is passed over.
                Some(word) if self.depth > MAX_DEPTH || word == "{" => self.at += 1,
                Some("if") => self.condition(active),
                Some("while" | "until" | "for") => self.repetition(),
                Some("function") => self.function(),
                Some("menuentry") => self.item(active, false),
                Some("submenu") => self.item(active, true),
                Some(_) => {
                    let words = self.words(active);
                    if active {
                        self.command(&words);
                    }
                }
            }
        }
        self.depth -= 1;
    }

    /// The word that is stood on, if it is this one, is gone past.
    fn pass(&mut self, keyword: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(word)) if word.keyword() == Some(keyword));
        self.at += usize::from(found);
        found
    }

    /// The words of a command, up to its end or a brace.
    fn words(&mut self, active: bool) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            if matches!(word.keyword(), Some("{" | "}")) {
                break;
            }
            self.at += 1;
            self.expand(word.clone(), &mut words, active);
        }
        words
    }

    fn expand(&self, word: Word, words: &mut Vec<String>, active: bool) {
        let len: usize = words.iter().map(|word| word.len() + 1).sum();
        if active && len <= MAX_COMMAND {
            words.extend(word.expand(&self.variables));
        }
    }

    /// `if LIST; then LIST; elif LIST; then LIST; else LIST; fi`
    fn condition(&mut self, active: bool) {
        self.at += 1;
        let mut open = active;
        loop {
            self.block(&["then"], open);
            let holds = open && self.status;
            self.pass("then");
            self.block(&["elif", "else", "fi"], holds);
            open &= !holds;
            if !self.pass("elif") {
                break;
            }
        }
        if self.pass("else") {
            self.block(&["fi"], open);
        }
        self.pass("fi");
    }

    /// A loop, which is passed over: no menu is made of one.
    fn repetition(&mut self) {
        self.at += 1;
        // The words of `for` are no command, and are passed over as one.
        self.block(&["do"], false);
        if self.pass("do") {
            self.block(&["done"], false);
            self.pass("done");
        }
    }

    /// A function, which is passed over: menus call them for saving their choice.
    fn function(&mut self) {
        self.at += 1;
        self.head(false);
        self.block(&["}"], false);
        self.pass("}");
    }

    /// The words up to a brace that opens, which is gone past.
    fn head(&mut self, active: bool) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            self.at += 1;
            if word.keyword() == Some("{") {
                break;
            }
            self.expand(word.clone(), &mut words, active);
        }
        words
    }

    /// `menuentry TITLE [OPTIONS] { ... }` or `submenu`.
    fn item(&mut self, active: bool, is_menu: bool) {
        self.at += 1;
        let words = self.head(active);
        // What an entry sets is its own.
        let variables = active.then(|| self.variables.clone());
        let menu = std::mem::take(&mut self.menu);
        let entry = std::mem::take(&mut self.entry);
        self.block(&["}"], active);
        self.pass("}");
        let below = std::mem::replace(&mut self.menu, menu);
        let mut entry = std::mem::replace(&mut self.entry, entry);
        self.variables = variables.unwrap_or_else(|| std::mem::take(&mut self.variables));
        if !active {
            return;
        }
        let (title, id) = title_and_id(words);
        entry.title = title;
        if is_menu {
            entry.kernel.clear();
        }
        self.menu.push(Item { id, entry, below });
    }

    fn command(&mut self, words: &[String]) {
        let Some((name, arguments)) = words.split_first() else {
            return;
        };
        self.status = true;
        match name.as_str() {
            "[" | "test" | "!" => self.status = condition::holds(words, self),
            "false" => self.status = false,
            "set" => arguments.iter().for_each(|argument| self.assign(argument)),
            "unset" => arguments.iter().for_each(|name| drop(self.variables.remove(name))),
            "load_env" => self.variables.extend(self.kept.clone().unwrap_or_default()),
            "linux" | "linux16" | "linuxefi" => {
                self.entry.kernel = arguments.first().cloned().unwrap_or_default();
                self.entry.options = arguments.get(1..).unwrap_or_default().join(" ");
                self.entry.initrds.clear();
            }
            "initrd" | "initrd16" | "initrdefi" => self.entry.initrds = arguments.to_vec(),
            // Only of what is here is known what it would do.
            "source" | "configfile" | "." => self.status = false,
            name if arguments.is_empty() && name.contains('=') => self.assign(name),
            _ => {}
        }
    }

    fn assign(&mut self, assignment: &str) {
        let Some((name, value)) = assignment.split_once('=') else {
            return;
        };
        let len: usize = self
            .variables
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if len + name.len() + value.len() <= MAX_VARIABLES {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }
}

/// The title of an entry and its id, from the words before its brace.
fn title_and_id(words: Vec<String>) -> (String, Option<String>) {
    let mut words = words.into_iter();
    let title = words.next().unwrap_or_default();
    let mut id = None;
    while let Some(word) = words.next() {
        match word.strip_prefix("--id") {
            Some("") => id = words.next(),
            Some(rest) => id = rest.strip_prefix('=').map(str::to_owned),
            None => {}
        }
    }
    (title, id)
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
