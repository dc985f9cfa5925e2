//! Standard input as a stream.
//!
//! A read of a terminal or pipe cannot be cancelled, and the runtime waits for its blocking threads when it ends:
//! the program would hang until the next key press. So a plain thread reads, which ends with the program.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Chunks that may wait for a consumer.
const QUEUE: usize = 4;

/// Chunks of standard input until its end. Call it once: what one reader takes, another does not see.
pub(super) fn chunks() -> io::Result<mpsc::Receiver<io::Result<Bytes>>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || pump(&sender))?;
    Ok(receiver)
}

fn pump(sender: &mpsc::Sender<io::Result<Bytes>>) {
    let mut input = io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        let item = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => Ok(Bytes::copy_from_slice(&buffer[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let last = item.is_err();
        if sender.blocking_send(item).is_err() || last {
            return;
        }
    }
}
