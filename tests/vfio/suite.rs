//! The rows of the data, the lists of exceptions, and the count.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The key of a row: section and step.
type Key = (String, String);

enum Kind {
    /// The library must do what the driver did.
    Replay,
    /// The library does something else, given here.
    Differs(String),
    /// There is nothing to try.
    Cannot,
}

struct Row {
    outcome: String,
    kind: Kind,
    /// How often the row was tried, and each wrong outcome.
    tried: usize,
    starred: bool,
    wrong: Vec<String>,
}

pub(crate) struct Suite {
    rows: BTreeMap<Key, Row>,
    section: &'static str,
    prefix: String,
    pub(crate) strategy: revocable_mmio::Strategy,
}

/// The section of steps that the data does not have.
const MORE: &str = "+";

impl Suite {
    /// Reads the data. Panics if a list names a row that does not exist, or names a row twice.
    pub(crate) fn load(strategy: revocable_mmio::Strategy) -> Self {
        let mut rows = BTreeMap::new();
        for [section, step, outcome] in lines(include_str!("rows.tsv")) {
            let row = Row { outcome, kind: Kind::Replay, tried: 0, starred: false, wrong: Vec::new() };
            assert!(rows.insert((section, step.clone()), row).is_none(), "two rows {step:?}");
        }
        let mut assign = |section: &str, step: &str, kind: Kind| {
            let row = rows.get_mut(&(section.to_owned(), step.to_owned()));
            let row = row.unwrap_or_else(|| panic!("a list names a row that is not in the data: {section} {step:?}"));
            assert!(matches!(row.kind, Kind::Replay), "in two lists: {section} {step:?}");
            row.kind = kind;
        };
        for [section, step, outcome, reason] in lines(include_str!("differs.tsv")) {
            assert!(!reason.is_empty(), "{step:?} differs for no reason");
            assign(&section, &step, Kind::Differs(outcome));
        }
        let cannot = include_str!("cannot.tsv");
        for [section, step, reason] in lines(cannot) {
            assert!(!reason.is_empty(), "{step:?} cannot be replayed for no reason");
            if step != "*" {
                assign(&section, &step, Kind::Cannot);
            }
        }
        // A star stands for all rows of a section that no list has named.
        for [section, step, _] in lines(cannot) {
            if step == "*" {
                for ((of, _), row) in rows.iter_mut() {
                    if *of == section && matches!(row.kind, Kind::Replay) {
                        row.kind = Kind::Cannot;
                        row.starred = true;
                    }
                }
            }
        }
        Self { rows, section: "", prefix: String::new(), strategy }
    }

    pub(crate) fn section(&mut self, section: &'static str) {
        self.section = section;
        self.prefix.clear();
    }

    /// Sets the text with which the names of the following steps begin.
    pub(crate) fn prefix(&mut self, prefix: &str) {
        prefix.clone_into(&mut self.prefix);
    }

    /// Records the outcome of a row.
    #[track_caller]
    pub(crate) fn row(&mut self, step: &str, outcome: impl Into<String>) {
        let outcome = outcome.into();
        let step = format!("{}{step}", self.prefix);
        let key = (self.section.to_owned(), step.clone());
        let row = self.rows.get_mut(&key).unwrap_or_else(|| panic!("no row {} {step:?}", self.section));
        row.tried += 1;
        let expected = match &row.kind {
            Kind::Replay => &row.outcome,
            Kind::Differs(ours) => ours,
            // A star covers the rows that are not replayed.
            Kind::Cannot if row.starred => {
                row.kind = Kind::Replay;
                &row.outcome
            }
            Kind::Cannot => panic!("{} {step:?} was tried, and is said not to apply", self.section),
        };
        if outcome != *expected {
            row.wrong.push(format!("{} {step}\n    expected {expected}\n    got      {outcome}", self.section));
        } else if matches!(row.kind, Kind::Differs(_)) && outcome == row.outcome {
            row.wrong.push(format!("{} {step} does not differ", self.section));
        }
    }

    /// Records a step beyond the data.
    #[track_caller]
    pub(crate) fn more(&mut self, step: &str, outcome: impl Into<String>, expected: &str) {
        let key = (MORE.to_owned(), format!("{} {}{step}", self.section, self.prefix));
        let row = Row { outcome: expected.to_owned(), kind: Kind::Replay, tried: 1, starred: false, wrong: Vec::new() };
        let row = self.rows.entry(key.clone()).or_insert(row);
        let outcome = outcome.into();
        if outcome != expected {
            row.wrong.push(format!("{}\n    expected {expected}\n    got      {outcome}", key.1));
        }
    }

    /// Prints the counts, or returns an error with everything that is wrong.
    pub(crate) fn finish(self) -> Result<(), String> {
        let (mut replayed, mut differs, mut cannot, mut more) = (0, 0, 0, 0);
        let mut wrong = String::new();
        for ((section, step), row) in &self.rows {
            for text in &row.wrong {
                let _ = writeln!(wrong, "{text}");
            }
            match row.kind {
                Kind::Cannot => cannot += 1,
                _ if section == MORE => more += 1,
                _ if row.tried == 0 => {
                    let _ = writeln!(wrong, "{section} {step}: in the data, in no list, and not replayed");
                }
                Kind::Replay => replayed += 1,
                Kind::Differs(_) => differs += 1,
            }
        }
        println!(
            "vfio conformance ({}): {replayed} rows replayed, {cannot} cannot apply, {differs} differ on purpose; \
             {more} steps more",
            self.strategy
        );
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// The lines of tab-separated data with `N` columns; `#` begins a comment.
fn lines<const N: usize>(text: &str) -> impl Iterator<Item = [String; N]> + '_ {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let columns: Vec<String> = line.splitn(N, '\t').map(str::to_owned).collect();
        columns.try_into().unwrap_or_else(|_| panic!("not {N} columns: {line}"))
    })
}
