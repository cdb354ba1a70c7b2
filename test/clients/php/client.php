<?php
// Prints the credentials that AsyncAws finds without any configuration.
require_once 'AsyncAws/Core/autoload.php';

use AsyncAws\Core\Configuration;
use AsyncAws\Core\Credentials\ChainProvider;

$found = ChainProvider::createDefaultChain()->getCredentials(Configuration::create([]));
if ($found === null) {
    fwrite(STDERR, "no credentials\n");
    exit(1);
}
echo json_encode([
    'AccessKeyId' => $found->getAccessKeyId(), 'SecretAccessKey' => $found->getSecretKey(),
    'SessionToken' => $found->getSessionToken(),
]), "\n";
