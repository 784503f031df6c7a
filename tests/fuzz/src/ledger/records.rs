//! Records as an input has them, one a line: a letter for the table, the key, a space, the value.

use std::path::Path;

use redb::{Database, Error, TableDefinition};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const DECISIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("decisions");
const OPERATIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("operations");
const STOPS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("stops");

/// Writes them into a good file.
pub fn write(file: &Path, lines: &[u8]) {
    try_write(file, lines).expect("the file is good");
}

fn try_write(file: &Path, lines: &[u8]) -> Result<(), Error> {
    let database = Database::builder().set_cache_size(1 << 20).open(file)?;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let mut decisions = transaction.open_table(DECISIONS)?;
        let mut operations = transaction.open_table(OPERATIONS)?;
        let mut stops = transaction.open_table(STOPS)?;
        for line in lines.split(|byte| *byte == b'\n') {
            let Some((table, rest)) = line.split_first() else { continue };
            let space = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            let (key, value) = (String::from_utf8_lossy(&rest[..space]), rest.get(space + 1..).unwrap_or_default());
            let number = key.parse().unwrap_or(2u64);
            match table {
                b'd' => drop(decisions.insert(&*key, value)?),
                b'o' => drop(operations.insert(number, value)?),
                b's' => drop(stops.insert(number as u32, value)?),
                b'l' => drop(meta.insert("layout", number)?),
                _ => {}
            }
        }
    }
    Ok(transaction.commit()?)
}
