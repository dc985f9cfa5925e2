"""A mail server for the tests: writes its port, then every message that it takes as a line of JSON.

It ends with its standard input, so it does not outlive a test that was killed. What it answers depends on the
recipient: `unknown@` gets a permanent error, `busy@` a transient one, and `spam@` one after the message, which the
answer repeats.
"""

import argparse
import asyncio
import email
import email.policy
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        match address.partition("@")[0]:
            case "unknown":
                return "550 5.1.1 there is nobody of that name"
            case "busy":
                return "451 4.7.1 greylisted, come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        text = message.get_body(("plain",)).get_content()
        if any(address.startswith("spam@") for address in envelope.rcpt_tos):
            return "554 5.7.1 unwanted: " + ascii(text)
        record = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "data": envelope.content.decode(),
            "tls": server.transport.get_extra_info("ssl_object") is not None,
            "user": session.auth_data.login.decode() if session.auth_data else None,
            "type": message.get_content_type(),
            "headers": {name.lower(): str(value) for name, value in message.items()},
            "text": text,
            "html": message.get_body(("html",)).get_content(),
        }
        print(json.dumps(record), flush=True)
        return "250 OK"


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cert", help="certificate chain, PEM")
    parser.add_argument("key", help="private key, PEM")
    parser.add_argument("--mode", choices=["starttls", "tls", "plain"], default="starttls")
    parser.add_argument("--user", help="require a login")
    parser.add_argument("--password", default="")
    parser.add_argument("--mechanism", choices=["LOGIN", "PLAIN"], help="offer this one only")
    args = parser.parse_args()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(args.cert, args.key)

    def authenticate(server, session, envelope, mechanism, data):
        if isinstance(data, LoginPassword) and data == LoginPassword(args.user.encode(), args.password.encode()):
            return AuthResult(success=True, auth_data=data)
        # No server should repeat the password, but some repeat what they do not like.
        told = f"535 5.7.8 {data.password.decode()!r} is not the password of {data.login.decode()!r}"
        return AuthResult(success=False, handled=False, message=told)

    def session():
        return SMTP(
            Handler(),
            hostname="localhost",
            tls_context=context if args.mode == "starttls" else None,
            require_starttls=args.mode == "starttls",
            authenticator=authenticate,
            auth_required=args.user is not None,
            # The library does not see TLS that was there before it.
            auth_require_tls=args.mode != "tls",
            auth_exclude_mechanism={"LOGIN", "PLAIN"} - {args.mechanism} if args.mechanism else None,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", 0, ssl=context if args.mode == "tls" else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(main())
