//! Sequences as text: one operation a line, words and numbers between blanks, `#` begins a comment. What a failing run
//! prints can be put into `corpus/` as it is.

use super::op::{
    Advice, Build, Call, Faulter, How, Limit, Loss, Lost, MOST_PAGES, Memory, Modify, Op, Pages, Place, Rights, Rough,
    Verb, Via, View, Waiter,
};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{OnDisabled, Strategy};

/// More than anything that is built or copied here; larger numbers in a file are a mistake.
const MOST: usize = 1 << 16;

const STRATEGIES: [(&str, Strategy); 3] =
    [("zap", Strategy::Zap), ("detach", Strategy::Detach), ("replace", Strategy::Replace)];
const MEMORIES: [(&str, Memory); 4] =
    [("memfd", Memory::Memfd), ("huge", Memory::Huge), ("shm", Memory::ShmFile), ("device", Memory::Device)];
const POLICIES: [(&str, OnDisabled); 3] =
    [("sigbus", OnDisabled::Sigbus), ("ones", OnDisabled::AllOnes), ("block", OnDisabled::Block)];
const HOWS: [(&str, How); 3] = [("wait", How::Wait), ("try", How::Try), ("timeout", How::Timeout)];
const VERBS: [(&str, Verb); 3] = [("disable", Verb::Disable), ("enable", Verb::Enable), ("reset", Verb::Reset)];
const RIGHTS: [(&str, Rights); 3] = [("nothing", Rights::Nothing), ("loads", Rights::Loads), ("all", Rights::All)];
const ROUGHS: [(&str, Rough); 16] = [
    ("mlock", Rough::Lock),
    ("munlock", Rough::Unlock),
    ("mbind", Rough::Bind),
    ("dont-need", Rough::Advise(Advice::DontNeed)),
    ("will-need", Rough::Advise(Advice::WillNeed)),
    ("dont-dump", Rough::Advise(Advice::DontDump)),
    ("random", Rough::Advise(Advice::Random)),
    ("cold", Rough::Advise(Advice::Cold)),
    ("page-out", Rough::Advise(Advice::PageOut)),
    ("collapse", Rough::Advise(Advice::Collapse)),
    ("populate", Rough::Advise(Advice::Populate)),
    ("mprotect:nothing", Rough::Protect(Rights::Nothing)),
    ("mprotect:loads", Rough::Protect(Rights::Loads)),
    ("mprotect:all", Rough::Protect(Rights::All)),
    ("hole", Rough::Hole),
    ("fill-holes", Rough::Fill),
];
const LOST: [(&str, Lost); 4] =
    [("userfaultfds", Lost::Userfaultfds), ("empty", Lost::Empty), ("ones", Lost::Ones), ("files", Lost::Files)];
const LOSSES: [(&str, Loss); 4] =
    [("close", Loss::Close), ("null", Loss::Null), ("directory", Loss::Directory), ("memory", Loss::Memory)];
const VIAS: [(&str, Via); 4] =
    [("accessor", Via::Accessor), ("try", Via::Try), ("register", Via::Register), ("raw", Via::Raw)];

fn name<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, known)| known == value).map_or("?", |(name, _)| name)
}

/// A sequence, a line for each operation.
pub(crate) fn print(history: &[Op]) -> String {
    history.iter().map(|op| line(op) + "\n").collect()
}

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

fn place(place: Place) -> String {
    match place {
        Place::Near { page, byte } => format!("{page}:{byte}"),
        Place::Far(offset) => format!("{offset:#x}"),
    }
}

/// The first page, and how many if it is not one.
fn pages(pages: Pages) -> String {
    if pages.count == 1 { pages.first.to_string() } else { format!("{}x{}", pages.first, pages.count) }
}

fn via(via: Via) -> String {
    match via {
        Via::With(flags) => format!("with:{:#x}", flags.bits()),
        other => name(&VIAS, &other).to_owned(),
    }
}

fn who(who: Faulter) -> String {
    let cancelled = if who.cancelled { " cancelled" } else { "" };
    format!("{:#x} {}{cancelled}", who.flags.bits(), name(&POLICIES, &who.policy))
}

pub(crate) fn line(op: &Op) -> String {
    match op {
        Op::Region { region, build } => {
            let Build { strategy, memory, pages, disabled, own_monitor, around, trim } = build;
            let mut line =
                format!("region {region} {} {} {pages}", name(&STRATEGIES, strategy), name(&MEMORIES, memory));
            for (set, word) in [(disabled, " disabled"), (own_monitor, " own-monitor"), (trim, " trim")] {
                line += if *set { word } else { "" };
            }
            line + &around.map_or(String::new(), |pages| format!(" around:{pages}"))
        }
        Op::DropRegion { region } => format!("drop {region}"),
        Op::Map { mapping, region, how } => {
            let len = how.len.map_or("rest".to_owned(), place);
            let mut line =
                format!("map {mapping} {region} {} {len} {}", place(how.offset), name(&POLICIES, &how.policy));
            for (set, word) in [(how.read_only, " read-only"), (how.accessors_only, " accessors-only")] {
                line += if set { word } else { "" };
            }
            line
        }
        Op::Unmap { mapping } => format!("unmap {mapping}"),
        Op::Disable { region, how } => format!("disable {region} {}", name(&HOWS, how)),
        Op::Enable { region, how } => format!("enable {region} {}", name(&HOWS, how)),
        Op::Reset { region, how, at, byte } => {
            format!("reset {region} {} {} {byte:#x}", name(&HOWS, how), place(*at))
        }
        Op::Load { mapping, via: by, width, at } => format!("load {mapping} {} {width} {}", via(*by), place(*at)),
        Op::Store { mapping, via: by, width, at, value } => {
            format!("store {mapping} {} {width} {} {value:#x}", via(*by), place(*at))
        }
        Op::Modify { mapping, modify, width, at, value } => {
            let modify = match modify {
                Modify::Swap => "swap".to_owned(),
                Modify::Add => "add".to_owned(),
                Modify::Or => "or".to_owned(),
                Modify::And => "and".to_owned(),
                Modify::Xor => "xor".to_owned(),
                Modify::Exchange(current) => format!("exchange:{current:#x}"),
            };
            format!("modify {mapping} {modify} {width} {} {value:#x}", place(*at))
        }
        Op::CopyOut { mapping, at, len } => format!("copy-out {mapping} {} {len}", place(*at)),
        Op::CopyIn { mapping, at, len, byte } => format!("copy-in {mapping} {} {len} {byte:#x}", place(*at)),
        Op::Fill { mapping, at, len, byte } => format!("fill {mapping} {} {len} {byte:#x}", place(*at)),
        Op::Call { mapping, call, at, len } => {
            let call = match call {
                Call::Vm => "vm".to_owned(),
                Call::Write => "write".to_owned(),
                Call::Read(byte) => format!("read:{byte:#x}"),
            };
            format!("call {mapping} {call} {} {len}", place(*at))
        }
        Op::Shed { mapping } => format!("shed {mapping}"),
        Op::Protect { mapping, pages: of, rights } => {
            format!("protect {mapping} {} {}", pages(*of), name(&RIGHTS, rights))
        }
        Op::Rough { mapping, pages: of, what } => format!("rough {mapping} {} {}", pages(*of), name(&ROUGHS, what)),
        Op::Lose { what, how } => format!("lose {} {}", name(&LOST, what), name(&LOSSES, how)),
        Op::Fork => "fork".to_owned(),
        Op::Limit(Limit::Descriptors(left)) => format!("limit descriptors {left}"),
        Op::Limit(Limit::Space(left)) => format!("limit space {left}"),
        Op::Limit(Limit::Mappings(left)) => format!("limit mappings {left}"),
        Op::Unlimit => "unlimit".to_owned(),
        Op::OwnerRead { region, at, len } => format!("owner-read {region} {} {len}", place(*at)),
        Op::OwnerFill { region, at, len, byte } => format!("owner-fill {region} {} {len} {byte:#x}", place(*at)),
        Op::Pin { pin, region, from, to, flags, polite } => {
            let polite = if *polite { " polite" } else { "" };
            format!("pin {pin} {region} {} {} {:#x}{polite}", place(*from), place(*to), flags.bits())
        }
        Op::Unpin { pin } => format!("unpin {pin}"),
        Op::Guard { mapping } => format!("guard {mapping}"),
        Op::Unguard => "unguard".to_owned(),
        Op::Group { group, members } => format!("group {group} {members:#x}"),
        Op::All { group, verb } => format!("all {group} {}", name(&VERBS, verb)),
        Op::FaultRegion { region, at, who: by } => format!("fault-region {region} {} {}", place(*at), who(*by)),
        Op::FaultMapping { mapping, at, who: by } => format!("fault-mapping {mapping} {} {}", place(*at), who(*by)),
        Op::Wait { mapping, what, at } => {
            let what = match what {
                Waiter::Load => "load".to_owned(),
                Waiter::Store(value) => format!("store:{value:#x}"),
                Waiter::Raw => "raw".to_owned(),
            };
            format!("wait {mapping} {what} {}", place(*at))
        }
    }
}

/// What is left of a line, last word first.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Result<&'a str, String> {
        self.0.pop().ok_or_else(|| "the line ends too early".to_owned())
    }

    /// A word that may be there or not.
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
        self.small(super::op::REGIONS)
    }

    fn mapping(&mut self) -> Result<usize, String> {
        self.small(super::op::MAPPINGS)
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
                pin: self.small(super::op::PINS)?,
                region: self.region()?,
                from: self.place()?,
                to: self.place()?,
                flags: self.flags()?,
                polite: self.has("polite"),
            },
            "unpin" => Op::Unpin { pin: self.small(super::op::PINS)? },
            "guard" => Op::Guard { mapping: self.mapping()? },
            "unguard" => Op::Unguard,
            "group" => {
                Op::Group { group: self.small(super::op::GROUPS)?, members: self.small(1 << super::op::REGIONS)? }
            }
            "all" => Op::All { group: self.small(super::op::GROUPS)?, verb: self.one_of(&VERBS)? },
            "fault-region" => Op::FaultRegion { region: self.region()?, at: self.place()?, who: self.who()? },
            "fault-mapping" => Op::FaultMapping { mapping: self.mapping()?, at: self.place()?, who: self.who()? },
            "wait" => {
                let mapping = self.mapping()?;
                let what = match self.word()? {
                    "load" => Waiter::Load,
                    "raw" => Waiter::Raw,
                    word if word.starts_with("store:") => Waiter::Store(number(&word[6..])?),
                    word => return Err(format!("nobody waits to {word:?}")),
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

fn flags(bits: u64) -> Result<FaultFlags, String> {
    // Also bits that are no flags: that they are refused is tested, too.
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
