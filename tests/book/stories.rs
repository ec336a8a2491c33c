//! Stories: what the book does, told as text files of commands and expected output in `tests/stories/book`.
//!
//! A block is some commands, `----`, the output, an empty line. `ANDANTE_REWRITE_STORIES=1 cargo test --test book`
//! writes the output that the book gives now; read the difference before you keep it.
//!
//! ```text
//! create NAME budget=N price=N [start=T] [end=T] [hold=T] [billable=impression] [request=ID]
//! update NAME [budget=N] [price=N] [hold=T] [end=T] [request=ID] [revision=N] [incarnation=N]
//! pause|resume|end|delete|delete-once NAME [request=ID] [revision=N] [incarnation=N] [remember=1]
//! grant NAME[#INCARNATION]/NUMBER n=N holder=hN until=T
//! shrink NAME[#INCARNATION]/NUMBER issued=N holder=hN
//! impression|stream|skip|save|not-used NAME[#INCARNATION]/NUMBER.SEQUENCE[-SEQUENCE] [length=T]
//! close [margin=T] [retry=T] [purge=T]
//! set-time
//! show NAME
//! restart
//! ```
//! Every command takes `at=T`, the proposer's time from then on. Times are written like `1h30m`.

use std::{collections::BTreeMap, env, fs, path::Path};

use andante::campaign::{
    allowance::Allowance,
    book::{Book, CampaignState, Effect},
    proto::{
        CloseExpired, Command, Create, Delete, Grant, GrantStatus, Holder, Kind, Outcome, OutcomeStatus, Refusal,
        Reply, SetShardTime, SetState, Settle, Shrink, Spec, State, Tick, Update, command,
    },
    token::campaign_key,
};

#[test]
fn stories_of_the_book_come_out_as_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories/book");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let rewrite = env::var_os("ANDANTE_REWRITE_STORIES").is_some();
    let mut different = Vec::new();
    for path in paths {
        let told = fs::read_to_string(&path).unwrap();
        let played = play(&told);
        if told != played && rewrite {
            fs::write(&path, &played).unwrap();
        } else if told != played {
            let at = told.lines().zip(played.lines()).position(|(a, b)| a != b);
            let at = at.unwrap_or(told.lines().count().min(played.lines().count()));
            let line = |text: &str| text.lines().nth(at).unwrap_or("(nothing)").to_owned();
            different.push(format!(
                "{}:{}\n  told:   {}\n  played: {}",
                path.display(),
                at + 1,
                line(&told),
                line(&played)
            ));
        }
    }
    assert!(different.is_empty(), "\n{}", different.join("\n"));
}

/// The story with the output that the book gives.
fn play(story: &str) -> String {
    let mut stage = Stage { book: Book::new(), now_ms: 0 };
    let mut text = String::new();
    let mut output = String::new();
    let mut in_output = false;
    for line in story.lines() {
        match line {
            "----" => {
                in_output = true;
                text += "----\n";
                text += &output;
                output.clear();
            }
            "" => {
                in_output = false;
                text += "\n";
            }
            _ if in_output => {}
            line => {
                text += &format!("{line}\n");
                if !line.starts_with('#') {
                    output += &stage.play(line);
                }
            }
        }
    }
    assert!(output.is_empty(), "commands without output at the end of a story");
    text
}

struct Stage {
    book: Book,
    now_ms: u64,
}

/// The words of a line.
struct Line<'a> {
    target: &'a str,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn get(&self, option: &str) -> Option<&'a str> {
        self.options.get(option).copied()
    }

    fn number(&self, option: &str, default: u64) -> u64 {
        self.get(option).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{option}={text}")))
    }

    fn time(&self, option: &str, default: u64) -> u64 {
        self.get(option).map_or(default, time_of)
    }

    fn text(&self, option: &str) -> String {
        self.get(option).unwrap_or_default().into()
    }

    fn holder(&self) -> Option<Holder> {
        let epoch = self.get("holder")?.strip_prefix('h').and_then(|n| n.parse().ok());
        Some(Holder { node_id: 1, boot_id: 1, cell_epoch: epoch.expect("holder=hN") })
    }
}

impl Stage {
    fn play(&mut self, text: &str) -> String {
        let mut words = text.split_whitespace();
        let verb = words.next().unwrap();
        let mut line = Line { target: "", options: BTreeMap::new() };
        for word in words {
            match word.split_once('=') {
                Some((option, value)) => drop(line.options.insert(option, value)),
                None => line.target = word,
            }
        }
        self.now_ms = line.time("at", self.now_ms);
        let state = |state: State| self.set_state(&line, state);
        let kind = match verb {
            "create" => self.create(&line),
            "update" => self.update(&line),
            "resume" => state(State::Active),
            "pause" => state(State::Paused),
            "end" => state(State::Ended),
            "delete" => state(State::Deleting),
            "delete-once" => command::Kind::Delete(Delete {
                request_id: line.text("request"),
                name: line.target.into(),
                expected_revision: line.number("revision", 0),
                now_ms: self.now_ms,
                expected_incarnation: line.number("incarnation", 0) as u32,
            }),
            "grant" => self.grant(&line),
            "shrink" => self.shrink(&line),
            "impression" => self.settle(&line, Kind::Impression),
            "stream" => self.settle(&line, Kind::Stream),
            "skip" => self.settle(&line, Kind::Skip),
            "save" => self.settle(&line, Kind::Save),
            "not-used" => self.settle(&line, Kind::NotUsed),
            "close" => command::Kind::CloseExpired(CloseExpired {
                now_ms: self.now_ms,
                skew_margin_ms: line.time("margin", 5_000),
                retry_window_ms: line.time("retry", 600_000),
                purge_after_ms: line.time("purge", 90 * 86_400_000),
            }),
            "set-time" => command::Kind::SetShardTime(SetShardTime { now_ms: self.now_ms }),
            "show" => return self.show(line.target),
            "restart" => return self.restart(),
            _ => panic!("no such command: {text}"),
        };
        let reply = self.book.apply(&Command { kind: Some(kind) });
        self.book.check().unwrap();
        self.told(&reply)
    }

    fn create(&self, line: &Line<'_>) -> command::Kind {
        let spec = Spec {
            name: line.target.into(),
            owner: "owner".into(),
            tracks: vec!["track".into()],
            start_ms: line.time("start", 0),
            end_ms: line.time("end", 3_600_000),
            budget_micros: line.number("budget", 0),
            price_micros: line.number("price", 0),
            billable: if line.get("billable") == Some("impression") { Kind::Impression } else { Kind::Stream } as i32,
            min_stream_ms: 30_000,
            hold_ms: line.time("hold", 10_000),
            boost_cap: 1.0,
            expected_billable_share: 0.5,
            ..Spec::default()
        };
        command::Kind::Create(Create { request_id: line.text("request"), spec: Some(spec), now_ms: self.now_ms })
    }

    fn update(&self, line: &Line<'_>) -> command::Kind {
        let mut spec = self.book.campaign_by_name(line.target).map_or_else(Spec::default, |s| (*s.spec).clone());
        spec.name = line.target.into();
        spec.budget_micros = line.number("budget", spec.budget_micros);
        spec.price_micros = line.number("price", spec.price_micros);
        spec.hold_ms = line.time("hold", spec.hold_ms);
        spec.end_ms = line.time("end", spec.end_ms);
        command::Kind::Update(Update {
            request_id: line.text("request"),
            spec: Some(spec),
            expected_revision: line.number("revision", 0),
            now_ms: self.now_ms,
            expected_incarnation: line.number("incarnation", 0) as u32,
        })
    }

    fn set_state(&self, line: &Line<'_>, state: State) -> command::Kind {
        command::Kind::SetState(SetState {
            request_id: line.text("request"),
            name: line.target.into(),
            state: state as i32,
            expected_revision: line.number("revision", 0),
            now_ms: self.now_ms,
            expected_incarnation: line.number("incarnation", 0) as u32,
            remember_unchanged: line.number("remember", 0) == 1,
        })
    }

    fn grant(&self, line: &Line<'_>) -> command::Kind {
        let (campaign, incarnation, number) = self.allowance(line.target);
        let grant = Grant {
            campaign,
            incarnation,
            number: number.parse().unwrap(),
            n: line.number("n", 1) as u32,
            holder: line.holder(),
            issue_until_ms: line.time("until", self.now_ms + 5_000),
        };
        command::Kind::Tick(Tick { now_ms: self.now_ms, grants: vec![grant], ..Tick::default() })
    }

    fn shrink(&self, line: &Line<'_>) -> command::Kind {
        let (campaign, incarnation, number) = self.allowance(line.target);
        let shrink = Shrink {
            campaign,
            incarnation,
            number: number.parse().unwrap(),
            issued: line.number("issued", 0) as u32,
            holder: line.holder(),
        };
        command::Kind::Tick(Tick { now_ms: self.now_ms, shrinks: vec![shrink], ..Tick::default() })
    }

    fn settle(&self, line: &Line<'_>, kind: Kind) -> command::Kind {
        let (campaign, incarnation, token) = self.allowance(line.target);
        let (number, sequences) = token.split_once('.').expect("NUMBER.SEQUENCE");
        let (first, last) = sequences.split_once('-').unwrap_or((sequences, sequences));
        let outcome = |sequence| Outcome {
            campaign,
            incarnation,
            number: number.parse().unwrap(),
            sequence,
            kind: kind as i32,
            stream_ms: if kind == Kind::Stream { line.time("length", 30_000) } else { 0 },
        };
        let sequences = first.parse().unwrap()..=last.parse().unwrap();
        command::Kind::Settle(Settle { outcomes: sequences.map(outcome).collect() })
    }

    /// Key, incarnation (today's where none is told), and what stands behind the slash.
    fn allowance<'a>(&self, target: &'a str) -> (u64, u32, &'a str) {
        let (campaign, rest) = target.split_once('/').expect("NAME/NUMBER");
        let (name, incarnation) = match campaign.split_once('#') {
            Some((name, incarnation)) => (name, incarnation.parse().unwrap()),
            None => (campaign, self.book.campaign_by_name(campaign).map_or(0, |state| state.incarnation)),
        };
        (campaign_key(name), incarnation, rest)
    }

    /// Answer and effects, in words.
    fn told(&self, reply: &Reply) -> String {
        let mut lines = Vec::new();
        if reply.refusal() != Refusal::Unspecified {
            lines.push(format!("refused, {}: {}", reply.refusal().as_str_name(), reply.detail).replace("REFUSAL_", ""));
        }
        if let Some(campaign) = &reply.campaign {
            let name = &campaign.spec.as_ref().unwrap().name;
            let state = campaign.state().as_str_name().replace("STATE_", "");
            let again = if reply.repeated { ", as before" } else { "" };
            lines.push(format!("{name}#{} revision {}, {state}{again}", campaign.incarnation, campaign.revision));
        }
        if reply.repeated && reply.campaign.is_none() {
            lines.push("gone, as before".into());
        }
        for grant in &reply.grants {
            let status = grant.status().as_str_name().replace("GRANT_STATUS_", "");
            lines.push(match (&grant.allowance, grant.status()) {
                (Some(allowance), GrantStatus::Granted) => format!(
                    "granted {} tokens of {}, to be handed out until {}",
                    allowance.n,
                    allowance.price_micros,
                    told_time(allowance.issue_until_ms)
                ),
                (Some(allowance), _) => format!("{status}, but this holder has {} tokens of it", allowance.n),
                (None, _) => status,
            });
        }
        for run in reply.outcomes.chunk_by(|a, b| a == b) {
            let status = OutcomeStatus::try_from(run[0]).unwrap().as_str_name().replace("OUTCOME_STATUS_", "");
            lines.push(if run.len() == 1 { status } else { format!("{status}, {} times", run.len()) });
        }
        for effect in &self.book.last_effects().events {
            lines.push(match effect {
                Effect::Removed { incarnation, spec, .. } => format!("{}#{incarnation} is gone", spec.name),
                Effect::Shrunk { key, incarnation, number, tokens } => {
                    format!("{}: {tokens} tokens given back", self.name(*key, *incarnation, *number))
                }
                Effect::Closed { key, incarnation, number, expired, .. } => {
                    format!("{}: closed, {expired} tokens unused", self.name(*key, *incarnation, *number))
                }
                Effect::Changed { .. } | Effect::Granted { .. } | Effect::TimeSet => continue,
            });
        }
        if lines.is_empty() {
            lines.push("ok".into());
        }
        lines.into_iter().map(|line| line + "\n").collect()
    }

    fn name(&self, key: u64, incarnation: u32, number: u32) -> String {
        let removed = self.book.last_effects().events.iter().find_map(|effect| match effect {
            Effect::Removed { spec, .. } if campaign_key(&spec.name) == key => Some(spec.name.as_str()),
            _ => None,
        });
        let name = self.book.campaign(key).map(|state| state.spec.name.as_str()).or(removed).unwrap();
        format!("{name}#{incarnation}/{number}")
    }

    fn show(&self, name: &str) -> String {
        let Some(state) = self.book.campaign_by_name(name) else {
            return format!("no {name}\n");
        };
        let ledger = &state.ledger;
        let (settled, open, free) = (ledger.settled_micros(), ledger.open_micros(), ledger.free_micros());
        let budget = ledger.budget_micros();
        let mut text =
            format!("{name}#{}: {budget} = settled {settled} + open {open} + free {free}\n", state.incarnation);
        for allowance in state.open.values().chain(state.closed.values()) {
            text += &show_allowance(state, allowance);
        }
        text
    }

    fn restart(&mut self) -> String {
        let restored = Book::restore(self.book.snapshot()).unwrap();
        assert_eq!(restored.digest(), self.book.digest());
        self.book = restored;
        "the same book\n".into()
    }
}

fn show_allowance(state: &CampaignState, allowance: &Allowance) -> String {
    let Allowance { number, n, price_micros, settled_count, released_count, .. } = allowance;
    let due = told_time(allowance.promised_until_ms());
    let closing = if allowance.is_open() {
        format!("open, its last promise ends at {due}")
    } else {
        format!("closed at {}", told_time(allowance.closed_ms))
    };
    let holder = allowance.holder.cell_epoch;
    format!(
        "  {}#{}/{number} of h{holder}: {n} tokens of {price_micros}, {settled_count} settled, {released_count} released; {closing}\n",
        state.spec.name, state.incarnation
    )
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

fn time_of(text: &str) -> u64 {
    let mut total = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or_else(|| panic!("a time without unit: {text}"));
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit).unwrap_or_else(|| panic!("no such unit: {text}"));
        total += number.parse::<u64>().unwrap() * ms;
        rest = behind;
    }
    total
}

fn told_time(ms: u64) -> String {
    let mut rest = ms;
    let mut text = String::new();
    for (unit, length) in UNITS {
        if rest >= length {
            text += &format!("{}{unit}", rest / length);
            rest %= length;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}
