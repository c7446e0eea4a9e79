//! Reads the text form.

use super::super::op::{Build, Call, Faulter, Limit, MOST_PAGES, Modify, Op, Pages, Place, Via, View, Waiter};
use super::{HOWS, LOSSES, LOST, MEMORIES, MOST, POLICIES, RIGHTS, ROUGHS, STRATEGIES, VERBS, VIAS};
use revocable_mmio::fault::FaultFlags;

/// # Errors
/// Which line is not understood, and why.
pub(crate) fn parse(text: &str) -> Result<Vec<Op>, String> {
    let mut history = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("");
        let mut words = Words(line.split_ascii_whitespace().collect());
        words.0.reverse();
        if words.0.is_empty() {
            continue;
        }
        let op = words.op().and_then(|op| match words.0.last() {
            None => Ok(op),
            Some(more) => Err(format!("one word too many, {more:?}")),
        });
        history.push(op.map_err(|why| format!("line {}: {why}", number + 1))?);
    }
    Ok(history)
}

/// The words that are left of a line, the last one first.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Result<&'a str, String> {
        self.0.pop().ok_or_else(|| "the line ends too early".to_owned())
    }

    /// Takes an optional word. Returns true if it was there.
    fn has(&mut self, word: &str) -> bool {
        let there = self.0.last() == Some(&word);
        if there {
            self.0.pop();
        }
        there
    }

    fn number(&mut self) -> Result<u64, String> {
        number(self.word()?)
    }

    fn small(&mut self, limit: usize) -> Result<usize, String> {
        let number = self.number()?;
        usize::try_from(number).ok().filter(|n| *n < limit).ok_or(format!("{number} is not below {limit}"))
    }

    fn byte(&mut self) -> Result<u8, String> {
        let number = self.number()?;
        u8::try_from(number).map_err(|_| format!("{number} is no byte"))
    }

    fn flags(&mut self) -> Result<FaultFlags, String> {
        flags(self.number()?)
    }

    fn one_of<T: Copy>(&mut self, names: &[(&'static str, T)]) -> Result<T, String> {
        let word = self.word()?;
        one_of(names, word)
    }

    fn place(&mut self) -> Result<Place, String> {
        match self.word()? {
            word if word.contains(':') => place_near(word),
            word => Ok(Place::Far(usize::try_from(number(word)?).map_err(|e| e.to_string())?)),
        }
    }

    fn width(&mut self) -> Result<usize, String> {
        let width = self.small(9)?;
        if matches!(width, 1 | 2 | 4 | 8) { Ok(width) } else { Err(format!("no access has {width} bytes")) }
    }

    fn pages(&mut self) -> Result<Pages, String> {
        let word = self.word()?;
        let (first, count) = word.split_once('x').unwrap_or((word, "1"));
        let small = |word| number(word).ok().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= 2 * MOST_PAGES);
        match (small(first), small(count)) {
            (Some(first), Some(count)) => Ok(Pages { first, count }),
            _ => Err(format!("{word:?} are no pages")),
        }
    }

    fn via(&mut self) -> Result<Via, String> {
        match self.word()? {
            word if word.starts_with("with:") => Ok(Via::With(flags(number(&word[5..])?)?)),
            word => one_of(&VIAS, word),
        }
    }

    fn who(&mut self) -> Result<Faulter, String> {
        Ok(Faulter { flags: self.flags()?, policy: self.one_of(&POLICIES)?, cancelled: self.has("cancelled") })
    }

    fn region(&mut self) -> Result<usize, String> {
        self.small(super::super::op::REGIONS)
    }

    fn mapping(&mut self) -> Result<usize, String> {
        self.small(super::super::op::MAPPINGS)
    }

    fn op(&mut self) -> Result<Op, String> {
        Ok(match self.word()? {
            "region" => {
                let region = self.region()?;
                let (strategy, memory) = (self.one_of(&STRATEGIES)?, self.one_of(&MEMORIES)?);
                let pages = self.small(MOST_PAGES + 1)?;
                let (mut disabled, mut own_monitor, mut trim, mut around) = (false, false, false, None);
                while let Some(word) = self.0.pop() {
                    match (word, word.strip_prefix("around:")) {
                        ("disabled", _) => disabled = true,
                        ("own-monitor", _) => own_monitor = true,
                        ("trim", _) => trim = true,
                        (_, Some(pages)) => around = Some(usize::try_from(number(pages)?).map_err(|e| e.to_string())?),
                        _ => return Err(format!("{word:?} says nothing about a region")),
                    }
                }
                Op::Region { region, build: Build { strategy, memory, pages, disabled, own_monitor, around, trim } }
            }
            "drop" => Op::DropRegion { region: self.region()? },
            "map" => {
                let (mapping, region, offset) = (self.mapping()?, self.region()?, self.place()?);
                let len = if self.has("rest") { None } else { Some(self.place()?) };
                let policy = self.one_of(&POLICIES)?;
                let (read_only, accessors_only) = (self.has("read-only"), self.has("accessors-only"));
                Op::Map { mapping, region, how: View { offset, len, read_only, policy, accessors_only } }
            }
            "unmap" => Op::Unmap { mapping: self.mapping()? },
            "disable" => Op::Disable { region: self.region()?, how: self.one_of(&HOWS)? },
            "enable" => Op::Enable { region: self.region()?, how: self.one_of(&HOWS)? },
            "reset" => {
                Op::Reset { region: self.region()?, how: self.one_of(&HOWS)?, at: self.place()?, byte: self.byte()? }
            }
            "load" => Op::Load { mapping: self.mapping()?, via: self.via()?, width: self.width()?, at: self.place()? },
            "store" => Op::Store {
                mapping: self.mapping()?,
                via: self.via()?,
                width: self.width()?,
                at: self.place()?,
                value: self.number()?,
            },
            "modify" => {
                let mapping = self.mapping()?;
                let modify = match self.word()? {
                    "swap" => Modify::Swap,
                    "add" => Modify::Add,
                    "or" => Modify::Or,
                    "and" => Modify::And,
                    "xor" => Modify::Xor,
                    word if word.starts_with("exchange:") => Modify::Exchange(number(&word[9..])?),
                    word => return Err(format!("{word:?} modifies nothing")),
                };
                let (width, at, value) = (self.width()?, self.place()?, self.number()?);
                Op::Modify { mapping, modify, width, at, value }
            }
            "copy-out" => Op::CopyOut { mapping: self.mapping()?, at: self.place()?, len: self.small(MOST)? },
            "copy-in" => {
                Op::CopyIn { mapping: self.mapping()?, at: self.place()?, len: self.small(MOST)?, byte: self.byte()? }
            }
            "fill" => {
                Op::Fill { mapping: self.mapping()?, at: self.place()?, len: self.small(MOST)?, byte: self.byte()? }
            }
            "call" => {
                let mapping = self.mapping()?;
                let call = match self.word()? {
                    "vm" => Call::Vm,
                    "write" => Call::Write,
                    word if word.starts_with("read:") => Call::Read(Words(vec![&word[5..]]).byte()?),
                    word => return Err(format!("{word:?} is no call")),
                };
                Op::Call { mapping, call, at: self.place()?, len: self.small(MOST)? }
            }
            "shed" => Op::Shed { mapping: self.mapping()? },
            "protect" => Op::Protect { mapping: self.mapping()?, pages: self.pages()?, rights: self.one_of(&RIGHTS)? },
            "rough" => Op::Rough { mapping: self.mapping()?, pages: self.pages()?, what: self.one_of(&ROUGHS)? },
            "lose" => Op::Lose { what: self.one_of(&LOST)?, how: self.one_of(&LOSSES)? },
            "fork" => Op::Fork,
            "limit" => Op::Limit(match self.word()? {
                "descriptors" => Limit::Descriptors(self.byte()?),
                "space" => Limit::Space(u16::try_from(self.small(MOST)?).unwrap_or(u16::MAX)),
                "mappings" => Limit::Mappings(self.byte()?),
                word => return Err(format!("there is no limit of {word:?}")),
            }),
            "unlimit" => Op::Unlimit,
            "owner-read" => Op::OwnerRead { region: self.region()?, at: self.place()?, len: self.small(MOST)? },
            "owner-fill" => {
                Op::OwnerFill { region: self.region()?, at: self.place()?, len: self.small(MOST)?, byte: self.byte()? }
            }
            "pin" => Op::Pin {
                pin: self.small(super::super::op::PINS)?,
                region: self.region()?,
                from: self.place()?,
                to: self.place()?,
                flags: self.flags()?,
                polite: self.has("polite"),
            },
            "unpin" => Op::Unpin { pin: self.small(super::super::op::PINS)? },
            "guard" => Op::Guard { mapping: self.mapping()? },
            "unguard" => Op::Unguard,
            "group" => Op::Group {
                group: self.small(super::super::op::GROUPS)?,
                members: self.small(1 << super::super::op::REGIONS)?,
            },
            "all" => Op::All { group: self.small(super::super::op::GROUPS)?, verb: self.one_of(&VERBS)? },
            "fault-region" => Op::FaultRegion { region: self.region()?, at: self.place()?, who: self.who()? },
            "fault-mapping" => Op::FaultMapping { mapping: self.mapping()?, at: self.place()?, who: self.who()? },
            "wait" => {
                let mapping = self.mapping()?;
                let what = match self.word()? {
                    "load" => Waiter::Load,
                    "raw" => Waiter::Raw,
                    word if word.starts_with("store:") => Waiter::Store(number(&word[6..])?),
                    word => return Err(format!("no thread waits to {word:?}")),
                };
                Op::Wait { mapping, what, at: self.place()? }
            }
            word => return Err(format!("{word:?} is no operation")),
        })
    }
}

fn number(word: &str) -> Result<u64, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|e| format!("{word:?}: {e}"))
}

pub(super) fn flags(bits: u64) -> Result<FaultFlags, String> {
    // Unknown bits are kept, since their refusal is tested too.
    u32::try_from(bits).map(FaultFlags::from_bits_retain).map_err(|e| e.to_string())
}

fn one_of<T: Copy>(names: &[(&'static str, T)], word: &str) -> Result<T, String> {
    let known = || names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = names.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value).ok_or_else(|| format!("{word:?} is none of {}", known()))
}

fn place_near(word: &str) -> Result<Place, String> {
    let (page, byte) = word.split_once(':').ok_or("no colon")?;
    let page = page.parse::<usize>().ok().filter(|page| *page < MOST).ok_or(format!("{page:?} is no page"))?;
    let byte = byte.parse::<isize>().map_err(|e| format!("{byte:?}: {e}"))?;
    Ok(Place::Near { page, byte })
}
