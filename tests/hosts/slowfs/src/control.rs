//! What can be asked from outside: one line on the socket, an answer, and the connection is closed.

use std::io::{BufRead, BufReader, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::ledger::Ledger;
use crate::server::{Fault, Health, Server};

/// Answers for ever.
pub fn serve(listener: &UnixListener, hosts: &[String], server: &Server, ledger: &Ledger) {
    for client in listener.incoming().flatten() {
        // A client that has gone away needs no answer.
        let _ = answer(client, hosts, server, ledger);
    }
}

fn answer(mut client: UnixStream, hosts: &[String], server: &Server, ledger: &Ledger) -> Result<()> {
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match obey(&words, hosts, server, ledger) {
        Ok(text) => client.write_all(text.as_bytes()),
        Err(error) => client.write_all(format!("error: {error}\n").as_bytes()),
    }
}

fn obey(words: &[&str], hosts: &[String], server: &Server, ledger: &Ledger) -> std::result::Result<String, String> {
    let number = |name: &str| {
        hosts
            .iter()
            .position(|host| host == name)
            .ok_or_else(|| format!("there is no host `{name}`"))
    };
    let set_fault = |name: &str, health, place: &[&str]| {
        let fault = Fault {
            health,
            below: place.first().map(Into::into),
            operation: place.get(1).map(ToString::to_string),
        };
        server.set_fault(number(name)?, fault);
        Ok::<(), String>(())
    };
    match words {
        ["stats"] => {
            let (metadata, data) = server.busy();
            let busy = format!("busy\t{:.6}\t{:.6}\n", metadata.as_secs_f64(), data.as_secs_f64());
            return Ok(busy + &ledger.report());
        }
        ["reset"] => {
            server.reset();
            ledger.reset();
        }
        ["set", name, value] => server.set(name, value)?,
        ["trace", "start"] => ledger.start_trace(),
        ["trace", "stop"] => return Ok(ledger.stop_trace()),
        ["eio", host, place @ ..] => set_fault(host, Health::Failing, place)?,
        ["hang", host, place @ ..] => set_fault(host, Health::Hanging, place)?,
        ["heal", host] => set_fault(host, Health::Well, &[])?,
        ["held", host] => return Ok(server.held(number(host)?).to_string()),
        _ => return Err(format!("`{}` is no command", words.join(" "))),
    }
    Ok("ok\n".into())
}
