//! Reads what `strace -f -tt -yy -xx` wrote.

use std::collections::HashMap;

/// One system call. Positions are numbers of lines: strace writes them in the order in which it lets things happen, so
/// a call whose end stands before another one's start had returned before that one was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// Where it was made.
    pub(crate) start: usize,
    /// Where it returned; `None`: it never did.
    pub(crate) end: Option<usize>,
    /// Time of day when it was made.
    pub(crate) time: String,
    pub(crate) name: String,
    /// What the first argument, a file descriptor, stands for: a path or `TCP:[here->there]`.
    pub(crate) file: String,
    /// All bytes that were read or written.
    pub(crate) data: Vec<u8>,
    /// What it returned.
    pub(crate) returned: Option<i64>,
}

impl Call {
    /// Whether the descriptor is a TCP connection.
    pub(crate) fn on_connection(&self) -> bool {
        self.file.starts_with("TCP")
    }
}

/// All calls of a trace, ordered by when they were made.
///
/// # Errors
/// The line that is no line of such a trace, or shows only a part of what a connection carried.
pub(crate) fn parse<'a>(trace: &'a str) -> Result<Vec<Call>, String> {
    let mut calls: Vec<(Call, String)> = Vec::new();
    let mut pending: HashMap<&'a str, usize> = HashMap::new();
    for (number, line) in trace.lines().enumerate() {
        let bad = |why: &str| format!("line {} of the trace {why}: {:.200}", number + 1, line);
        let word = |text: &'a str| text.trim_start().split_once(' ');
        let Some((pid, (time, rest))) = word(line).and_then(|(pid, rest)| Some((pid, word(rest)?))) else {
            return Err(bad("is too short"));
        };
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let index = pending.remove(pid).ok_or_else(|| bad("resumes what was not begun"))?;
            let (_, text) = resumed.split_once("resumed>").ok_or_else(|| bad("does not say what resumes"))?;
            let (call, args) = &mut calls[index];
            args.push_str(text);
            // A process that dies within a call leaves `<unfinished ...>` or `?` here.
            call.returned = returned(args);
            call.end = call.returned.map(|_| number);
            continue;
        }
        let (name, args) = rest.split_once('(').ok_or_else(|| bad("is no call"))?;
        let mut call = Call {
            start: number,
            end: None,
            time: time.to_owned(),
            name: name.to_owned(),
            file: String::new(),
            data: Vec::new(),
            returned: None,
        };
        let mut args = args.to_owned();
        if let Some(begun) = args.strip_suffix("<unfinished ...>") {
            args = begun.to_owned();
            pending.insert(pid, calls.len());
        } else {
            call.returned = returned(&args);
            call.end = call.returned.map(|_| number);
        }
        calls.push((call, args));
    }
    calls.into_iter().map(|(call, args)| finish(call, &args)).collect()
}

/// Fills in what the arguments say, once they are complete.
fn finish(mut call: Call, args: &str) -> Result<Call, String> {
    if let Some((_, file)) = args.split_once('<')
        && let Some(end) = if file.starts_with("TCP") { file.find("]>").map(|end| end + 1) } else { file.find('>') }
    {
        call.file = String::from_utf8_lossy(&unescape(&file[..end])).into_owned();
    }
    let mut rest = args;
    while let Some((_, text)) = rest.split_once('"') {
        let Some((text, behind)) = text.split_once('"') else { break };
        if behind.starts_with("...") && call.on_connection() {
            return Err(format!("line {} of the trace shows only a part of its data", call.start + 1));
        }
        call.data.extend(unescape(text));
        rest = behind;
    }
    if let Some(length) = call.returned {
        call.data.truncate(usize::try_from(length).unwrap_or(0));
    }
    Ok(call)
}

/// The number behind the last `) = `.
fn returned(args: &str) -> Option<i64> {
    let (_, result) = args.rsplit_once(") = ").or_else(|| args.rsplit_once(")  = "))?;
    result.split(|c: char| c != '-' && !c.is_ascii_digit()).next()?.parse().ok()
}

/// With `-xx` every byte is `\x` and two digits; what else stands there stands for itself.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        match rest {
            [b'\\', b'x', high, low, behind @ ..] => {
                let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = behind;
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_interrupted_calls_are_read_with_their_files_and_bytes() {
        let trace = r#"19835 07:07:17.666211 recvfrom(5<TCP:[127.3.4.5:7400->127.0.0.1:51948]>,  <unfinished ...>
19835 07:07:17.668264 <... recvfrom resumed>"\x72\x65\x71", 100, 0, NULL, NULL) = 3
7     07:07:17.668583 pwrite64(6<\x2f\x6c\x6f\x67>, "\x68\x65"..., 500, 0) = 500
19835 07:07:17.668756 fdatasync(6<\x2f\x6c\x6f\x67> <unfinished ...>
7     07:07:17.669000 recvfrom(5<TCP:[a->b]>, 0x7f, 10, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
7     07:07:17.669100 --- SIGCHLD {si_signo=SIGCHLD} ---
19835 07:07:17.669200 <... fdatasync resumed>) = 0
19835 07:07:17.669455 writev(5<TCP:[a->b]>, [{iov_base="\x61\x22", iov_len=2}, {iov_base="\x63\x64", iov_len=2}], 2) = 3
19835 07:07:17.669500 fdatasync(6<\x2f\x6c\x6f\x67>) = 0 (INJECTED)
19835 07:07:17.669674 recvfrom(5<TCP:[a->b]>,  <unfinished ...>
19835 07:07:17.674092 +++ killed by SIGKILL +++"#;
        let calls = parse(trace).expect("reads");
        let seen: Vec<_> = calls
            .iter()
            .map(|c| (c.name.as_str(), c.file.as_str(), c.data.as_slice(), (c.start, c.end), c.returned))
            .collect();
        type Seen<'a> = (&'a str, &'a str, &'a [u8], (usize, Option<usize>), Option<i64>);
        let expected: [Seen<'_>; 7] = [
            ("recvfrom", "TCP:[127.3.4.5:7400->127.0.0.1:51948]", b"req", (0, Some(1)), Some(3)),
            ("pwrite64", "/log", b"he", (2, Some(2)), Some(500)),
            ("fdatasync", "/log", b"", (3, Some(6)), Some(0)),
            ("recvfrom", "TCP:[a->b]", b"", (4, Some(4)), Some(-1)),
            ("writev", "TCP:[a->b]", b"a\"c", (7, Some(7)), Some(3)),
            ("fdatasync", "/log", b"", (8, Some(8)), Some(0)),
            ("recvfrom", "TCP:[a->b]", b"", (9, None), None),
        ];
        assert_eq!(seen, expected);
        assert_eq!(calls[0].time, "07:07:17.666211");
    }

    #[test]
    fn a_trace_that_cuts_what_a_connection_carried_is_refused() {
        let cut = r#"1 07:07:17.666211 recvfrom(5<TCP:[a->b]>, "\x72"..., 100, 0, NULL, NULL) = 3"#;
        assert!(parse(cut).unwrap_err().contains("only a part"));
        assert!(parse("nonsense").is_err());
        assert!(parse("1 07:07:17.6 <... read resumed>) = 0").unwrap_err().contains("was not begun"));
    }
}
