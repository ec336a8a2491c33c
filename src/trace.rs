//! Reads recorded traces of promotion opportunities, row by row, plain or gzipped.
//!
//! Two formats:
//! - [`Format::Ipinyou`]: no header, fields separated by spaces or tabs: click (0 or 1), market price (1/1000 fen),
//!   predicted click probability, and optionally the hour. Everything behind the fourth field is ignored.
//! - [`Format::Csv`]: a header names the columns, in any order. `price_micros` (whole number) and `pctr` (value or
//!   relevance, at least 0) are required; `click` (0 or 1), `hour` (0 to 23) and `index` (position in time, strictly
//!   growing) are optional; other columns are ignored. Numbers only: no quoting.
//!
//! Empty lines are skipped. The first bad row ends the reading with an error that names line and column.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;

/// Longest line accepted; real rows have some 40 bytes, so a longer one means that this is no trace.
const MAX_LINE_BYTES: u64 = 4096;

/// Micros of a currency unit in 1/1000 fen, the unit of iPinYou's market prices (100 fen are one unit).
const MICROS_PER_MILLIFEN: u64 = 10;

/// Highest price of a row; the same bound as for all money of the cluster.
const MAX_PRICE_MICROS: u64 = (1 << 53) - 1;

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Format {
    /// iPinYou auction logs: click, market price, predicted click probability, hour; separated by spaces or tabs.
    Ipinyou,
    /// Comma-separated with a header: price_micros, pctr, and optionally click, hour, index.
    Csv,
}

/// One opportunity to promote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Position in time, from 0: the row's number, or the column `index`.
    pub index: u64,
    /// Whether the listener clicked.
    pub click: bool,
    /// What the opportunity costs, in micros.
    pub price_micros: u64,
    /// Predicted click probability; any scale at or above 0 does.
    pub pctr: f64,
    /// Hour of the day, where the trace tells.
    pub hour: Option<u8>,
}

/// Why a trace can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can't be opened or read. Check path and permissions.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A row (or the header) is not as the format wants it. Correct the file or choose the other format.
    #[error("{path}, line {line}, column {column}: {detail}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column's name.
        column: String,
        /// What is wrong.
        detail: String,
    },
}

/// Streams the rows of a trace. Holds one line in memory.
pub struct Reader {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    columns: Columns,
    line: u64,
    next_index: u64,
    buffer: Vec<u8>,
    failed: bool,
}

impl Reader {
    /// Opens a trace; gzip is recognised by its first bytes, not by the name. Reads the header of csv.
    pub fn open(path: &Path, format: Format) -> Result<Self, TraceError> {
        let io = |source| TraceError::Io { path: path.to_owned(), source };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let gzipped = file.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead + Send> =
            if gzipped { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) };
        Self::new(path, input, format)
    }

    /// Reads from `input`; `name` is for error messages.
    pub fn new(name: &Path, input: Box<dyn BufRead + Send>, format: Format) -> Result<Self, TraceError> {
        let mut reader = Reader {
            path: name.to_owned(),
            input,
            columns: Columns::IPINYOU,
            line: 0,
            next_index: 0,
            buffer: Vec::new(),
            failed: false,
        };
        if format == Format::Csv {
            let header = reader.next_line()?.ok_or_else(|| reader.error("header", "the file is empty".into()))?;
            reader.columns = Columns::of_header(&header).map_err(|(column, detail)| reader.error(&column, detail))?;
        }
        Ok(reader)
    }

    fn error(&self, column: &str, detail: String) -> TraceError {
        TraceError::Row { path: self.path.clone(), line: self.line.max(1), column: column.to_owned(), detail }
    }

    /// The next line that is not empty, without its end.
    fn next_line(&mut self) -> Result<Option<String>, TraceError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let n = (&mut self.input)
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| TraceError::Io { path: self.path.clone(), source })?;
            if n == 0 {
                return Ok(None);
            }
            if n as u64 == MAX_LINE_BYTES && !self.buffer.ends_with(b"\n") {
                return Err(self.error("(whole line)", format!("longer than {MAX_LINE_BYTES} bytes")));
            }
            let line = std::str::from_utf8(&self.buffer)
                .map_err(|_| self.error("(whole line)", "not UTF-8 text".into()))?
                .trim();
            if !line.is_empty() {
                return Ok(Some(line.to_owned()));
            }
        }
    }

    fn next_row(&mut self) -> Result<Option<Row>, TraceError> {
        let Some(line) = self.next_line()? else { return Ok(None) };
        let row = self.columns.parse(&line, self.next_index).map_err(|(column, detail)| self.error(column, detail))?;
        self.next_index = row.index + 1;
        Ok(Some(row))
    }
}

impl Iterator for Reader {
    type Item = Result<Row, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = self.next_row().transpose();
        self.failed = matches!(row, Some(Err(_)));
        row
    }
}

/// Reads a whole trace into memory (40 bytes a row).
pub fn read_all(path: &Path, format: Format) -> Result<Vec<Row>, TraceError> {
    Reader::open(path, format)?.collect()
}

/// Where each field stands.
#[derive(Clone, Copy)]
struct Columns {
    comma: bool,
    price_unit_micros: u64,
    click: Option<usize>,
    price: usize,
    pctr: usize,
    hour: Option<usize>,
    index: Option<usize>,
}

/// A column and what is wrong with it.
type Bad<C> = (C, String);

impl Columns {
    const IPINYOU: Columns = Columns {
        comma: false,
        price_unit_micros: MICROS_PER_MILLIFEN,
        click: Some(0),
        price: 1,
        pctr: 2,
        hour: Some(3),
        index: None,
    };

    fn of_header(header: &str) -> Result<Self, Bad<String>> {
        let names: Vec<&str> = header.trim_start_matches('\u{feff}').split(',').map(str::trim).collect();
        let find = |name: &str| names.iter().position(|n| *n == name);
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                return Err(((*name).to_owned(), "named twice in the header".into()));
            }
        }
        let need = |name: &str| {
            find(name).ok_or_else(|| (name.to_owned(), format!("missing in the header, which is `{header}`")))
        };
        Ok(Columns {
            comma: true,
            price_unit_micros: 1,
            click: find("click"),
            price: need("price_micros")?,
            pctr: need("pctr")?,
            hour: find("hour"),
            index: find("index"),
        })
    }

    fn parse(&self, line: &str, next_index: u64) -> Result<Row, Bad<&'static str>> {
        // Five known columns, and the first 32 that a row may have.
        let mut fields = [""; 32];
        let mut count = 0;
        let mut put = |field| {
            if count < fields.len() {
                fields[count] = field;
                count += 1;
            }
        };
        if self.comma {
            line.split(',').map(str::trim).for_each(&mut put);
        } else {
            line.split_ascii_whitespace().for_each(&mut put);
        }
        let field = |at: usize, name: &'static str| {
            fields[..count].get(at).copied().filter(|f| !f.is_empty()).ok_or((name, "missing".to_owned()))
        };

        let click = match self.click.map(|at| field(at, "click")).transpose()? {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => return Err(("click", format!("`{other}` is neither 0 nor 1"))),
        };
        let text = field(self.price, "price")?;
        let price_micros = text
            .parse::<u64>()
            .ok()
            .and_then(|price| price.checked_mul(self.price_unit_micros))
            .filter(|price| *price <= MAX_PRICE_MICROS)
            .ok_or_else(|| ("price", format!("`{text}` is no whole number from 0 to 2^53-1 micros")))?;
        let text = field(self.pctr, "pctr")?;
        let pctr = text
            .parse::<f64>()
            .ok()
            .filter(|p| p.is_finite() && *p >= 0.0)
            .ok_or_else(|| ("pctr", format!("`{text}` is no finite number at or above 0")))?;
        // The iPinYou files come with and without the hour.
        let hour = match self.hour.and_then(|at| fields[..count].get(at).copied()).filter(|f| !f.is_empty()) {
            None => None,
            Some(text) => Some(
                text.parse::<u8>()
                    .ok()
                    .filter(|h| *h < 24)
                    .ok_or_else(|| ("hour", format!("`{text}` is no whole number from 0 to 23")))?,
            ),
        };
        let index = match self.index {
            None => next_index,
            Some(at) => {
                let text = field(at, "index")?;
                text.parse::<u64>().ok().filter(|i| *i >= next_index && *i < MAX_PRICE_MICROS).ok_or_else(|| {
                    ("index", format!("`{text}` is no whole number at or above {next_index} (it must grow)"))
                })?
            }
        };
        Ok(Row { index, click, price_micros, pctr, hour })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    fn read(text: &str, format: Format) -> Result<Vec<Row>, String> {
        let input = Box::new(Cursor::new(text.as_bytes().to_vec()));
        Reader::new(Path::new("t"), input, format)
            .and_then(|reader| reader.collect::<Result<Vec<Row>, _>>())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn ipinyou_rows_are_read_with_spaces_or_tabs_and_with_or_without_the_hour() {
        let row = |index, click, price_micros, pctr, hour| Row { index, click, price_micros, pctr, hour };
        assert_eq!(
            read("0 70 0.0021\n\n1\t6\t0.5\t14\r\n", Format::Ipinyou),
            Ok(vec![row(0, false, 700, 0.0021, None), row(1, true, 60, 0.5, Some(14))])
        );
    }

    #[test]
    fn csv_columns_are_found_by_name_and_others_ignored() {
        let rows = read("pctr,note,price_micros,index\n0.5,x,12,3\n0.25,,7,9\n", Format::Csv).unwrap();
        assert_eq!(rows[0], Row { index: 3, click: false, price_micros: 12, pctr: 0.5, hour: None });
        assert_eq!(rows[1], Row { index: 9, click: false, price_micros: 7, pctr: 0.25, hour: None });
    }

    #[test]
    fn errors_name_line_and_column() {
        let cases = [
            (Format::Ipinyou, "0 1 0.1\n2 1 0.1\n", "t, line 2, column click: `2` is neither 0 nor 1"),
            (Format::Ipinyou, "0 1 0.1\n\n0 -1 0.1\n", "t, line 3, column price: `-1` is no whole number"),
            (Format::Ipinyou, "0 1\n", "t, line 1, column pctr: missing"),
            (Format::Ipinyou, "0 1 NaN\n", "t, line 1, column pctr: `NaN` is no finite number"),
            (Format::Ipinyou, "0 1 0.5 24\n", "t, line 1, column hour: `24`"),
            (Format::Ipinyou, "0 99999999999999999 0.5\n", "t, line 1, column price"),
            (Format::Csv, "", "t, line 1, column header: the file is empty"),
            (Format::Csv, "price_micros,click\n", "t, line 1, column pctr: missing in the header"),
            (Format::Csv, "pctr,pctr,price_micros\n", "t, line 1, column pctr: named twice"),
            (Format::Csv, "pctr,price_micros,index\n1,1,5\n1,1,5\n", "t, line 3, column index: `5`"),
            (Format::Csv, "pctr,price_micros\n1,\n", "t, line 2, column price: missing"),
        ];
        for (format, text, expected) in cases {
            let error = read(text, format).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let long = "x".repeat(5000);
        assert!(read(&long, Format::Ipinyou).unwrap_err().contains("longer than 4096 bytes"));
    }

    #[test]
    fn a_bad_row_ends_the_reading() {
        let input = Box::new(Cursor::new(b"x\n0 1 1\n".to_vec()));
        let mut reader = Reader::new(Path::new("t"), input, Format::Ipinyou).unwrap();
        assert!(reader.next().unwrap().is_err());
        assert!(reader.next().is_none());
    }

    #[test]
    fn gzip_is_recognised_by_content() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut gz = flate2::write::GzEncoder::new(&mut file, flate2::Compression::fast());
        gz.write_all(b"0 1 0.5\n1 2 0.25\n").unwrap();
        gz.finish().unwrap();
        let rows = read_all(file.path(), Format::Ipinyou).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].price_micros, 20);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_all(Path::new("/nowhere/at/all"), Format::Csv).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
