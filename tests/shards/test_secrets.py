"""Secrets in URLs and commands are never shown, and other text is not changed."""

import json

import pytest

from shards.secrets import masked, masked_values

SECRET = "SEKRET"

# Inputs, and the text that is written or shown. The text does not contain the secret, and nothing else is lost.
MASKED = {
    # URLs: user and password, the values of the query, the fragment
    "https://bob:SEKRET@host/a.tar": "https://***@host/a.tar",
    "https://SEKRET@host/a.tar": "https://***@host/a.tar",
    "https://bob:SE/KRET?SEKRET@host/a.tar": "https://***@host/a.tar",
    "s3://a/{00..11}.tar::https://host/b.tar?key=SEKRET&part=2":
    "s3://a/{00..11}.tar::https://host/b.tar?key=***&part=***",
    "https://host/a.tar?SEKRET": "https://host/a.tar?***",
    "https://host/a.tar#token=SEKRET": "https://host/a.tar#***",
    "http://[::1]:80/a.tar?sig=SEKRET": "http://[::1]:80/a.tar?sig=***",
    "zip://a::https://bob:SEKRET@host/b": "zip://a::https://***@host/b",
    # As Python's paths write them
    "https:/bob:SEKRET@host/a.pth is missing": "https:/***@host/a.pth is missing",
    "no file s3:/host/a?key=SEKRET": "no file s3:/host/a?key=***",
    "https://host/a.tar?sig=SEKRET: tried for 300 s": "https://host/a.tar?sig=***: tried for 300 s",
    # Headers, users and cookies of curl and its like
    'pipe:curl -H "Authorization: Bearer SEKRET" https://host/a.tar': "pipe:curl -H *** https://host/a.tar",
    "pipe:curl -sSfH 'X-Any: a SEKRET b' https://host/a.tar": "pipe:curl -sSfH *** https://host/a.tar",
    "pipe:curl -HX-Any:SEKRET https://host/a.tar": "pipe:curl -H*** https://host/a.tar",
    "pipe:curl -H X-Any:\\ SEKRET https://host/a.tar": "pipe:curl -H *** https://host/a.tar",
    'pipe:wget --header="X-Any: SEKRET" -O - https://host/a.tar': "pipe:wget --header=*** -O - https://host/a.tar",
    "pipe:curl -u bob:SEKRET https://host/a.tar | gzip -d": "pipe:curl -u *** https://host/a.tar | gzip -d",
    "pipe:curl -subob:SEKRET https://host/a.tar": "pipe:curl -su*** https://host/a.tar",
    "pipe:curl -u bob:\"SEK\"'SEKRET' https://host/a.tar": "pipe:curl -u *** https://host/a.tar",
    "pipe:curl --user=bob:SEKRET https://host/a.tar": "pipe:curl --user=*** https://host/a.tar",
    "pipe:curl --proxy-user bob:SEKRET https://host/a.tar": "pipe:curl --proxy-user *** https://host/a.tar",
    "pipe:curl -x http://bob:SEKRET@proxy https://host/a.tar": "pipe:curl -x http://***@proxy https://host/a.tar",
    "pipe:curl -b id=SEKRET --cookie 'id=SEKRET' host": "pipe:curl -b *** --cookie *** host",
    "pipe:curl --oauth2-bearer SEKRET host": "pipe:curl --oauth2-bearer *** host",
    'pipe:curl -d \'{"user": "bob", "password": "SEKRET"}\' host': "pipe:curl -d *** host",
    'pipe:printf \'{"user": "bob", "password": "SEKRET"}\' | get':
    'pipe:printf \'{"user": "bob", "password": ***\' | get',
    "pipe:printf 'Authorization: Other SEKRET SEKRET' | get": "pipe:printf 'Authorization:***' | get",
    "pipe:get Bearer SEKRET /a.tar": "pipe:get Bearer *** /a.tar",
    "pipe:curl 'https://bob:SEKRET@host/a.tar?X-Amz-Signature=SEKRET&e=1'":
    "pipe:curl 'https://***@host/a.tar?X-Amz-Signature=***&e=***'",
    "pipe:curl -E me.pem:SEKRET --cert me.pem:SEKRET host": "pipe:curl -E *** --cert *** host",
    # Options and variables whose names tell
    "pipe:get --token SEKRET --password=SEKRET --api-key 'SEK RET' /a.tar":
    "pipe:get --token *** --password=*** --api-key *** /a.tar",
    "pipe:AWS_SECRET_ACCESS_KEY=SEKRET aws s3 cp s3://a/b.tar -":
    "pipe:AWS_SECRET_ACCESS_KEY=*** aws s3 cp s3://a/b.tar -",
    "pipe:export PGPASSWORD='SEK RET'; get": "pipe:export PGPASSWORD=***; get",
    "pipe:az --account-key SEKRET --connection-string 'A=b;AccountKey=SEKRET'":
    "pipe:az --account-key *** --connection-string ***",
    "pipe:hadoop -Dfs.s3a.secret.key=SEKRET fs -cat a.tar": "pipe:hadoop -Dfs.s3a.secret.key=*** fs -cat a.tar",
    "pipe:gsutil -o Credentials:gs_secret_access_key=SEKRET cat gs://a":
    "pipe:gsutil -o Credentials:gs_secret_access_key=*** cat gs://a",
    "pipe:get 'host?jwt=SEKRET' x?auth=SEKRET": "pipe:get 'host?jwt=***' x?auth=***",
    "pipe:sshpass -p SEKRET ssh -p 22 host cat a.tar": "pipe:sshpass -p *** ssh -p 22 host cat a.tar",
    "pipe:sshpass -p'SEK RET' ssh host cat a.tar": "pipe:sshpass -p*** ssh host cat a.tar",
    "pipe:mysql -pSEKRET -e x | 7z x -pSEKRET -so": "pipe:mysql -p*** -e x | 7z x -p*** -so",
    "pipe:aws configure set aws_secret_access_key SEKRET; get": "pipe:aws configure set aws_secret_access_key ***; get",
    "pipe:curl -H \\\n 'X-Any: SEKRET' host": "pipe:curl -H \\\n *** host",
    "pipe:openssl enc -d -k SEKRET": "pipe:openssl enc -d -k ***",
    "pipe:openssl enc -d -pass pass:SEKRET -in a.tar": "pipe:openssl enc -d -pass *** -in a.tar",
    "pipe:gpg --passphrase SEKRET --decrypt /a.tar": "pipe:gpg --passphrase *** --decrypt /a.tar",
    "pipe:lftp -u bob,SEKRET host": "pipe:lftp -u *** host",
    "pipe:get --any hf_SEKRETSEKRETSEKRETSEKRET ghp_SEKRETSEKRETSEKRETSEKRET": "pipe:get --any *** ***",
    # Commands within commands, and in messages that quote them
    "pipe:sh -c 'curl -H \"X-Any: SEKRET\" host | gzip -d'": "pipe:sh -c 'curl -H *** host | gzip -d'",
    "'data.shards=pipe:curl -H \\'X-Any: SEKRET b\\' host' is wrong": "'data.shards=pipe:curl -H *** host' is wrong",
    'pipe:curl -H "X-Any: SEKRET never closed': "pipe:curl -H ***",
    "/a.tar::pipe:curl -u bob:SEKRET host::/b.tar": "/a.tar::pipe:curl -u *** host::/b.tar",
}  # fmt: skip

OPEN = [
    "/data/a b/shard-{000..099}.tar",
    "/data/session=5/key=3/token.tar",
    "s3://bucket/a@2/{000..099}.tar",
    "http://localhost:8000/a@2.tar",
    "vit_base_patch16_224",
    "section.key=value",
    "pipe:cat /data/shard-{000..099}.tar",
    "pipe:aws s3 cp --no-sign-request s3://bucket/{000..099}.tar -",
    "pipe:curl -fsSL --retry 3 https://host/a.tar | gzip -d | tar -xf - -O",
    "pipe:ssh -p 22 host cat /data/a.tar",
    "pipe:cat /data/token.tar: its command ended with status 22",
    # References are no secrets
    'pipe:curl -H "Authorization: Bearer $TOKEN" https://host/a.tar?sig=$SIG',
    'pipe:curl -H "Authorization: Bearer ${TOKEN}" --user "bob:$PASSWORD" https://$USER:$PASSWORD@host/a.tar',
    'pipe:TOKEN="$(cat /run/token)" get --password $PASSWORD',
]


@pytest.mark.parametrize("text", MASKED, ids=range(len(MASKED)))
def test_secrets_are_masked(text: str) -> None:
    assert masked(text) == MASKED[text]
    assert "SEK" not in MASKED[text]


@pytest.mark.parametrize("text", OPEN)
def test_all_else_is_not(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("text", [*MASKED, *(f"pipe:{part}" * 3 for part in ("' ", '\\"', "-u 'a", "key=", "\"'"))])
def test_to_mask_twice_is_to_mask_once(text: str) -> None:
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "part", ["a.", "://", "[:", '\\"', "'", "\"'", "-u ", "key", "sig.", "key: ", "sshpass -p", "@", ":@", "--data-a"]
)
def test_no_text_takes_long(part: str) -> None:
    """Names of others stand in messages. Each takes milliseconds here; what grew with the square would take minutes."""
    for text in (f"pipe:{part * 20_000}", f"http://{part * 20_000}"):
        assert len(masked(text)) <= 3 * len(text)


def test_values_are_masked_however_deep() -> None:
    url, safe = "https://host/?token=SEKRET", "https://host/?token=***"
    values = {"a": url, "b": [1, None, url, {"c": url}], "d": True}
    assert masked_values(values) == {"a": safe, "b": [1, None, safe, {"c": safe}], "d": True}
    assert SECRET not in json.dumps(masked_values(values))
